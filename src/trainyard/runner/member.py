"""Member: one run inside a Runner."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trainyard import rng_state
from trainyard.errors import ConfigError, UnknownMetricError, some
from trainyard.files import remove
from trainyard.optim.identity import Beginning
from trainyard.runner.weights import LoadFrom, load_from
from trainyard.track import Journal, RunInfo, Status, Tracker, run_info

if TYPE_CHECKING:
    from trainyard.runner.loops import TrainLoop
    from trainyard.runner.runner import Runner

log = logging.getLogger(__name__)

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """The metric that ranks runs, for the best checkpoint, early stopping, the ranking of a sweep, and a search."""

    name: str = "val/loss"
    direction: Direction = "minimize"

    def __post_init__(self) -> None:
        if self.direction not in ("maximize", "minimize"):
            raise ConfigError("direction", self.direction, "maximize or minimize", options=("maximize", "minimize"))

    def better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Return whether `value` is better than `than` by more than `by`.

        NaN is never better; other numbers are better than None and NaN.
        """
        if math.isnan(value):
            return False
        if than is None or math.isnan(than):
            return True
        return value > than + by if self.direction == "maximize" else value < than - by


@dataclass
class Best:
    """The current best objective, and the iteration and epoch at which it was reached."""

    value: float
    epoch: int
    iter: int


@dataclass
class Member:
    """One run inside a Runner: its parts, its progress, its directory, journal and checkpoints.

    The Runner of a single run has one member, whose parts are the parts of the Runner. The members of a stack have
    their own parts, which are views of the stack's tensors.

    Attributes:
        seed: every random choice of the run is derived from it.
        work_dir: the run's directory; None if the run writes no files.
        objective: the number that ranks runs.
        info: the run's record for MLflow.
        resume: the argument of the Runner.
        load_from: the argument of the Runner.
        journal: the journal, which only the main rank writes, if there is a directory.
        best: the current best objective.
        stop_reason: the reason for the end of the training before the end of the loop; see `stop`.
        failed: whether the member ended because of a failure.
        paused: whether the member ends now and continues later from its last checkpoint.
        vacant: whether this is not a run, but a placeholder for a free lane of a stack.
        evaluated: the name of the logged model that is evaluated; None: the trained model.
    """

    seed: int
    work_dir: Path | None
    objective: Objective
    info: RunInfo = field(default_factory=lambda: RunInfo("run"), compare=False)
    resume: bool | str | Path = False
    load_from: LoadFrom | None = None
    journal: Journal = field(default_factory=Journal, init=False, compare=False)
    best: Best | None = field(default=None, init=False)
    stop_reason: str | None = field(default=None, init=False)
    failed: bool = field(default=False, init=False)
    paused: bool = field(default=False, init=False)
    vacant: bool = field(default=False, init=False)
    notes: dict[str, str] = field(default_factory=dict, init=False, compare=False)
    evaluated: str | None = field(default=None, init=False, compare=False)
    _told: Best | None = field(default=None, init=False, compare=False, repr=False)
    _runner: Runner | None = field(default=None, init=False, compare=False, repr=False)

    def join(self, runner: Runner) -> None:
        """Make this object a member of a Runner."""
        self._runner = runner

    @property
    def runner(self) -> Runner:
        """The Runner that trains the member."""
        assert self._runner is not None
        return self._runner

    @property
    def settings(self) -> Mapping[str, Any]:
        """The arguments of the Runner that would train the member alone, by name."""
        return self.runner.settings

    # -- the member's parts ------------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The trained model; for a stack, its tensors are views of the stack's tensors."""
        return self.runner.model

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and tested: `model`, or a replacement that a hook has set (EMA)."""
        return self.runner.eval_model

    @property
    def optimizer(self) -> Any:
        """The optimizer; for a stack, a view with `param_groups`, `state_dict` and `load_state_dict`."""
        return self.runner.optimizer

    @property
    def beginning(self) -> Beginning:
        """The parameters that were trained when the optimizer was built."""
        return self.runner.beginning

    @property
    def schedule(self) -> Any:
        """The schedule of the optimizer's hyperparameters; None if there is none."""
        return self.runner.schedule

    @property
    def iter(self) -> int:
        """Number of completed iterations of the member."""
        return self.runner.iter

    @property
    def epoch(self) -> int:
        """Number of completed epochs of the member."""
        epoch: int = self.runner.epoch
        return epoch

    @property
    def batches_done(self) -> int:
        """Number of completed batches of the member in its current epoch."""
        return self.runner.batches_done

    @property
    def loop(self) -> TrainLoop:
        """The training loop of the member's single run, which defines its length and its validations."""
        return self.runner.train_loop

    @property
    def due(self) -> bool:
        """Whether the current validation includes this member; in a stack, it may be due only for other members."""
        return True

    def loop_state(self) -> dict[str, Any]:
        """Return the state of the training loop of the member's single run."""
        return self.runner.train_loop.state_dict()

    def load_reading(self, reading: dict[str, Any], done: int) -> None:
        """Continue reading from a state of the `TrainingReader`, after `done` batches of an epoch."""
        self.runner.reader.load_state_dict(reading, done)

    def load_position(self, state: Mapping[str, Any], done: int) -> None:
        """Set the position to that of a checkpoint, `done` batches after the start of its epoch."""
        self.runner.train_loop.load_state_dict(state["loop"])
        self.runner.go_to(state["epoch"], done, state["iter"])

    def step_state(self) -> dict[str, Any]:
        """Return the member's part of the step's state: its loss scale and its accumulated gradients."""
        return self.runner.step.state_dict()

    def load_step_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `step_state` returned."""
        self.runner.step.load_state_dict(state)

    def hook_states(self) -> dict[str, dict[str, Any]]:
        """Return the states of the hooks for this member, by hook name."""
        return self.runner.dispatch.state_dict()

    def load_hook_states(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Restore the states that `hook_states` returned."""
        self.runner.dispatch.load_state_dict(states)

    def random_state(self, process: dict[str, Any]) -> dict[str, Any]:
        """Return the state of the member's random number generators; `process` is that of the process's generators."""
        return process

    def load_random_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `random_state` returned."""
        rng_state.restore(state)

    # -- its directory, journal and results --------------------------------------------------------------------------

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of each metric, by name."""
        return self.journal.latest

    @property
    def metric_steps(self) -> dict[str, int]:
        """The step at which the latest value of each metric was recorded, by name."""
        return self.journal.latest_steps

    @property
    def directory(self) -> Path:
        """The member's directory; it exists only if the run writes files."""
        assert self.work_dir is not None
        return self.work_dir

    @property
    def checkpoints(self) -> Path:
        """The directory of the member's checkpoints."""
        return self.directory / "checkpoints"

    def open(self, tracker: Tracker, *, resume: bool) -> None:
        """Open, or continue, the member's journal and its run in MLflow.

        Raises:
            TrainyardError: the directory already contains a run, or another process trains in it.
            OSError: the directory cannot be written.
        """
        if self.work_dir is None:
            return
        if not self.journal.writes:
            self.work_dir.mkdir(parents=True, exist_ok=True)
            continued = resume and (self.work_dir / run_info.FILE).exists()
            before, self.journal = self.journal, Journal(self.work_dir)
            self.journal.latest.update(before.latest)
            self.journal.latest_steps.update(before.latest_steps)
            if continued:
                self._tell_gap()
            for folder in (self.work_dir, self.checkpoints):
                for part in folder.glob(".*.tmp"):  # of a killed process: ours alone holds the journal
                    remove(part)
            info = tracker.open(self.work_dir, self.info, resume=resume, step=self.iter)
            changed = [f"{key}={value}" for key, value in info.changes.items() if key.endswith(f"@{self.iter}")]
            if resume and changed:
                told = ", ".join(changed)
                log.info("Changed on resume (also a tag of the run): %s.", told, extra={"member": self})
        self.tell_notes()
        self.journal.status("RUNNING")

    def tell_notes(self) -> None:
        """Record the notes that were made while the member was restored."""
        if self.notes:
            self.journal.tags(self.notes)
            self.notes.clear()

    def _tell_gap(self) -> None:
        """Warn if the journal lacks points that are recorded in the checkpoint."""
        journal, best = self.journal, self.best
        lost = [name for name in self.metrics if journal.lacks(name)]
        if best is not None and self.objective.name not in lost and journal.lacks(self.objective.name, best.iter):
            lost.append(self.objective.name)
        if lost:
            log.warning(
                "%s ends before the checkpoint of iteration %d: values of %s are missing in this file, and in MLflow "
                "if they were not uploaded before.",
                journal.path,
                self.iter,
                some(lost, 4),
                extra={"member": self},
            )

    def close(self, status: Status, message: str = "") -> None:
        """Record the end of the run, as failed if the member failed; the journal can be opened again.

        For a finished run, the best objective is recorded, at its iteration. A run that pauses has not ended.
        """
        if self.paused:
            return
        if self.failed and status == "FINISHED":
            status, message = "FAILED", str(self.stop_reason)
        if status == "FINISHED":  # not of a run that may go on: its journal is to be that of an undisturbed one
            self._tell_best()
        self.journal.status(status, message)
        if (gone := self.journal.gone()) is not None:
            where = "lost, and missing" if gone == "removed" else "only in the moved file, and missing"
            log.warning(
                "%s was %s during the run: records written since then are %s in MLflow.",
                *(self.journal.path, gone, where),
                extra={"member": self},
            )

    def _tell_best(self) -> None:
        best = self.best
        if best is not None and best != self._told:
            self._told = replace(best)
            # MLflow's "Compare" draws the metric that is logged last.
            values = {"best/epoch": best.epoch, "best/step": best.iter, f"best/{self.objective.name}": best.value}
            self.journal.metrics(best.iter, values, epoch=best.epoch)

    def stop(self, reason: str, *, failed: bool = False) -> None:
        """End this member's training after the current iteration; `failed` marks its run as failed."""
        self.stop_reason = reason
        self.failed = failed

    @property
    def leaves(self) -> bool:
        """Whether the member's training ends after the current iteration."""
        return self.paused or self.stop_reason is not None

    def record(self, values: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Store the values as the latest values and write them to the journal."""
        self.metrics.update(values)
        self.metric_steps.update(dict.fromkeys(values, int(step)))
        self.journal.metrics(step, values, epoch=epoch, of=self.evaluated)

    def record_array(self, name: str, value: Tensor) -> None:
        """Write a result that is not one number, such as a confusion matrix, to the journal."""
        self.journal.array(name, self.iter, value.tolist())

    def latest(self, name: str, key: str) -> float:
        """Return the latest value of a metric that the config names under `key`.

        Raises:
            ConfigError: no metric has this name, or a hook records it only later.
        """
        metrics = self.metrics
        if name not in metrics:
            trained = name.startswith("train/")
            names = [known for known in metrics if trained or not known.startswith("train/")]
            if late := self.runner.dispatch.recorder(name, names):
                group, _, rest = key.partition(".")
                reader = "param_schedule" if group == "schedule" else rest.partition(".")[0]
                accepted = "a metric that is recorded before it is read"
                raise ConfigError(key, name, accepted, hint=self.runner.dispatch.order_hint(late, reader))
            raise UnknownMetricError(key, name, f"This run computes {', '.join(names) or 'no metrics'}", options=names)
        return metrics[name]

    def judge(self, *, step: int, epoch: int) -> None:
        """Compare the latest objective with the best."""
        value = self.latest(self.objective.name, "objective")
        if self.objective.better(value, self.best.value if self.best else None):
            self.best = Best(value, epoch, step)

    def is_best(self, step: int) -> bool:
        """Return whether the best objective was reached at iteration `step`."""
        return self.best is not None and self.best.iter == step

    def state_dict(self) -> dict[str, Any]:
        best = None if self.best is None else vars(self.best).copy()
        metrics = {"metrics": dict(self.metrics), "metric_steps": dict(self.metric_steps)}
        return {**metrics, "best": best, "stop_reason": self.stop_reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.metrics.clear()
        self.metrics.update(state["metrics"])
        self.metric_steps.clear()
        self.metric_steps.update(state.get("metric_steps", {}))  # older checkpoints do not contain them
        self.best = None if state["best"] is None else Best(**state["best"])
        self.stop_reason = state["stop_reason"]


def read(values: Mapping[str, Tensor], count: int) -> list[dict[str, float]]:
    """Return device numbers as Python floats, a mapping per member, with one synchronization for all of them.

    Args:
        values: by name, tensors `[]` (one member) or `[count]`.
        count: the number of members.
    """
    if not values:
        return [{} for _ in range(count)]
    table = torch.stack([value.detach().reshape(-1).expand(count).to(torch.float64) for value in values.values()])
    columns: Sequence[Sequence[float]] = table.t().tolist()
    return [dict(zip(values, column, strict=True)) for column in columns]


def member_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `Member`, taken from those of its Runner."""
    work_dir = None if settings["work_dir"] is None else Path(settings["work_dir"]).resolve()
    return {
        "seed": settings["seed"],
        "work_dir": work_dir,
        "objective": Objective(settings["objective"], settings["direction"]),
        "info": settings["info"] or RunInfo(settings["name"] or (work_dir.name if work_dir else "run")),
        "resume": settings["resume"],
        "load_from": load_from(settings["load_from"]),
    }
