"""Profiler hook: a Chrome trace of some iterations."""

from __future__ import annotations

import logging
import math
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from trainyard._torch_internals import without_inductor
from trainyard.checks import boolean, integer
from trainyard.runner import Runner
from trainyard.runner.hook import Hook

if TYPE_CHECKING:
    from torch.profiler import profile

log = logging.getLogger("trainyard")


class Profiler(Hook):
    """Profiles some iterations with `torch.profiler`, on the CPU and, if the run uses CUDA, on the GPU.

    The hook skips `skip_first` iterations and then repeats cycles. A cycle has `wait` iterations without profiling,
    `warmup` iterations whose record is discarded, and `active` recorded iterations. Iterations are counted from the
    start of training in this process. Each cycle writes two files to `profile/`, which are also artifacts of the run in
    MLflow: a Chrome trace (`.json.gz`; ui.perfetto.dev shows it) and a table of the slowest operators (`.txt`). An
    incomplete cycle at the end of the run is kept.

    A stack has one trace of the program that trains all members. The trace is saved with the first member.

    Args:
        skip_first: the number of skipped iterations at the start.
        wait: the number of iterations without profiling at the start of each cycle.
        warmup: the number of profiled iterations whose record is discarded, because the first iterations are slower.
        active: the number of recorded iterations.
        repeat: the number of cycles; 0: cycles until the end of the run.
        record_shapes: record the shapes of the operators' inputs.
        profile_memory: record allocations and deallocations.
        with_stack: record the Python lines that call the operators; slow.
    """

    priority = "LOWEST"  # the work of other hooks after an iteration is part of it
    ranks = "main"
    stackable = True

    def __init__(
        self,
        skip_first: int = 10,
        wait: int = 1,
        warmup: int = 1,
        active: int = 3,
        repeat: int = 1,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
    ) -> None:
        self.skip_first = integer("skip_first", skip_first, at_least=0)
        self.cycle = {
            "wait": integer("wait", wait, at_least=0),
            "warmup": integer("warmup", warmup, at_least=0),
            "active": integer("active", active, at_least=1),
            "repeat": integer("repeat", repeat, at_least=0),
        }
        notes = {"record_shapes": record_shapes, "profile_memory": profile_memory, "with_stack": with_stack}
        self.notes: dict[str, Any] = {key: boolean(key, wanted) for key, wanted in notes.items()}
        self._profile: profile | None = None
        self._left = skip_first + repeat * (wait + warmup + active) if repeat else math.inf

    def before_train(self, runner: Runner) -> None:
        from torch.profiler import ProfilerActivity, profile, schedule

        warnings.filterwarnings("ignore", "Warning: Profiler clears events at the end of each cycle")  # all are saved
        activities = [ProfilerActivity.CPU]
        if runner.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(skip_first=self.skip_first, **self.cycle),
            on_trace_ready=partial(self._save, runner),
            **self.notes,
        )
        with without_inductor():
            self._profile.start()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if self._profile is None:
            return
        with without_inductor():
            self._profile.step()
        self._left -= 1
        if self._left == 0:
            self._stop()

    def after_train(self, runner: Runner) -> None:
        self._stop()

    def after_run(self, runner: Runner) -> None:
        self._stop()  # the training may have ended in an error

    def _stop(self) -> None:
        if self._profile is not None:
            with without_inductor():
                self._profile.stop()
            self._profile = None

    def _save(self, runner: Runner, profile: profile) -> None:
        (member, *_) = runner.members
        key = "self_cuda_time_total" if runner.device.type == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=60)
        if not member.journal.writes:
            log.info("Profiled until iteration %d:\n%s", runner.iter, table)
            return
        folder, name = member.directory / "profile", f"iter_{runner.iter:08d}"
        folder.mkdir(exist_ok=True)
        profile.export_chrome_trace(str(folder / f"{name}.json.gz"))
        (folder / f"{name}.txt").write_text(table, encoding="utf-8")
        for ending in ("json.gz", "txt"):
            member.journal.artifact(folder / f"{name}.{ending}", to="profile")
        log.info("Profiled until iteration %d: profile/%s.json.gz and profile/%s.txt.", runner.iter, name, name)
