"""Time to the first new step of an iteration loop that is resumed at iteration 1,000,000 (epoch 10,000 of 100 batches).

The time begins with the creation of the Runner, after torch is imported. MMEngine reads and drops all earlier batches,
so it is resumed only at iteration 10,000.

**Result:** Trainyard does not read the earlier batches.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import ours
import peers
import torch
from measure import Comparison, Session, Side, Table, Turn, take_turns
from work import RATE, Work

from trainyard.data.lengths import exact_length
from trainyard.hooks import Hook
from trainyard.models import Supervised
from trainyard.runner import IterBasedTrainLoop, Runner
from trainyard.runner.default_hooks import default_hooks

AT = 1_000_000
SKIPPED = 10_000
WORK = Work()


class FirstStep(Hook):
    """Hook that records the time of the first step, and ends the training there."""

    priority = "HIGHEST"

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.moment, self.iter = perf_counter(), runner.iter
        runner.interrupt()


class Jump(Hook):
    """Hook that sets a run of one iteration to just before iteration `AT`, so that the others need not be run."""

    def before_train(self, runner: Runner) -> None:
        runner.go_to(*divmod(AT - 1, exact_length(runner.loader("train")) or 1), AT - 1)


def tables(session: Session) -> Iterator[Table]:
    resumed, begun, same = "resumed at 1,000,000, resident data", "started at 0", "resumed at 1,000,000, a DataLoader"
    sides: dict[str, Side] = {
        resumed: partial(trainyard, resident=True, at=AT),
        same: partial(trainyard, resident=False, at=AT),
        begun: partial(trainyard, resident=True, at=0),
        f"MMEngine, resumed at {SKIPPED:,}": mmengine,
    }
    values, failed = take_turns(session, sides, turns=1)
    comparisons = [Comparison(name, None, 1.0, "value") for name in (resumed, same)]
    comparisons += [Comparison(name, begun) for name in (resumed, same)]
    yield Table("Resume", "s", values, failed, comparisons)


def make(folder: Path, hooks: dict[str, Any], *, resident: bool, length: int, resume: bool) -> Runner:
    return Runner(
        model=Supervised(WORK.net()),
        data=ours.data(WORK, resident=resident),
        optim=ours.ADAM,
        hooks={**default_hooks(), **hooks},
        loop=IterBasedTrainLoop(length),
        device="cpu",
        work_dir=folder,
        resume=resume,
    )


@contextmanager
def trainyard(*, resident: bool, at: int) -> Iterator[Turn]:
    with tempfile.TemporaryDirectory() as name:

        def turn() -> float:
            folder = Path(tempfile.mkdtemp(dir=name))
            if at:
                make(folder, {"jump": Jump()}, resident=resident, length=at, resume=False).train()
            first = FirstStep()
            begin = perf_counter()
            make(folder, {"first": first}, resident=resident, length=at + 1000, resume=at > 0).train()
            assert first.iter == at + 1, "the run did not go on where it was"
            return first.moment - begin

        yield turn


@contextmanager
def mmengine() -> Iterator[Turn]:
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # torch refuses MMEngine's checkpoints without it
    from mmengine.hooks import Hook as MMEngineHook
    from mmengine.runner import Runner as MMEngineRunner

    class Ready(MMEngineHook):
        moment = 0.0

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            self.moment = self.moment or perf_counter()

    def runner(folder: str, length: int, **arguments: Any) -> Any:
        return MMEngineRunner(
            model=peers.mmengine_model(WORK),
            work_dir=folder,
            train_dataloader={
                "dataset": torch.utils.data.TensorDataset(*WORK.tensors),
                "batch_size": WORK.batch,
                "sampler": {"type": "InfiniteSampler", "shuffle": True},
                "collate_fn": {"type": "default_collate"},
            },
            train_cfg={"by_epoch": False, "max_iters": length, "val_interval": length},
            optim_wrapper={"optimizer": {"type": "Adam", "lr": RATE}},
            default_hooks={"logger": None, "checkpoint": None},
            log_level="ERROR",
            **arguments,
        )

    with tempfile.TemporaryDirectory() as folder:

        def turn() -> float:
            stopped = runner(folder, 1)
            stopped.train()
            stopped.train_loop._iter = SKIPPED
            stopped.save_checkpoint(folder, "stopped.pth", by_epoch=False)
            ready = Ready()
            begin = perf_counter()
            path = f"{folder}/stopped.pth"
            runner(folder, SKIPPED + 2, load_from=path, resume=True, custom_hooks=[ready]).train()
            return ready.moment - begin

        yield turn
