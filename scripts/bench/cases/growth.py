"""Growth of time: of an iteration with hooks, metrics and parameters; of the start with the size of the config.

The training is that of the MLP in the first table on resident data, with the default hooks and without MLflow. An idle
hook defines the stages of a run, an epoch and a checkpoint, but none of an iteration. Hooks "at work" have an empty
`after_train_iter`. Both are measured with all sides in one process, because two processes that do the same work differ
by more than the effect. The metrics are copies of `Accuracy` and `CrossEntropy`, in turn. They must not slow down the
training, but each of them adds to the time of a validation batch of 256. The number of parameter tensors grows with the
number of layers of width 64. The config grows by keys that the user adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import ours
import peers
from measure import Comparison, Session, Table, take_turns, take_turns_here
from work import Work

from cases import startup, validation
from trainyard.hooks import Hook
from trainyard.runner import Runner


class Idle(Hook):
    """Hook with stages, but none of an iteration."""

    def before_run(self, runner: Runner) -> None:
        """Do nothing."""

    def before_train_epoch(self, runner: Runner) -> None:
        """Do nothing."""

    def after_train_epoch(self, runner: Runner) -> None:
        """Do nothing."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Do nothing."""


class AtWork(Hook):
    """Hook that is called after every iteration."""

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        """Do nothing."""


def hooks(kind: str, count: int) -> dict[str, Any]:
    added = {f"{kind.lower()}{number}": {"_target_": f"cases.growth.{kind}"} for number in range(count)}
    return {**ours.DEFAULT_HOOKS, **added}


def metrics(count: int) -> dict[str, Any]:
    kinds = ("Accuracy", "CrossEntropy")
    return {f"metric{number}": {"_target_": f"trainyard.metrics.{kinds[number % 2]}"} for number in range(count)}


def tables(session: Session) -> Iterator[Table]:
    work = Work(epochs=session.size(10, 2))
    side = partial(ours.trainyard, work, resident=True, uri=None)
    unit = "µs per iteration"

    sides = {f"{count} idle hooks": partial(side, hooks=hooks("Idle", count)) for count in (0, 10, 30)}
    sides["30 hooks at work"] = partial(side, hooks=hooks("AtWork", 30))
    values, failed = take_turns(session, sides, turns=15, together=True)
    comparisons = [
        Comparison("10 idle hooks", "0 idle hooks"),
        Comparison("30 idle hooks", "0 idle hooks", 1.01),
        Comparison("30 hooks at work", "0 idle hooks"),
    ]
    yield Table("Step against hooks", unit, values, failed, comparisons)

    sides = {f"{count} metrics": partial(side, metrics=metrics(count)) for count in (0, 8, 32)}
    values, failed = take_turns(session.fewer(), sides, turns=9, together=True)
    comparisons = [Comparison(f"{count} metrics", "0 metrics") for count in (8, 32)]
    yield Table("Step against metrics", unit, values, failed, comparisons)

    rows = Work(samples=25_600, batch=256, epochs=session.size(5, 1))
    sides = {
        f"{count} metrics": partial(
            validation.trainyard, rows, resident=True, metrics=metrics(count), objective="val/metric0"
        )
        for count in (1, 2, 8, 32)
    }
    values, failed = take_turns(session.fewer(), sides, turns=2)
    comparisons = [Comparison(f"{count} metrics", "1 metrics") for count in (2, 8, 32)]
    yield Table("Validation against metrics", "µs per batch", values, failed, comparisons)

    sides = {}
    for layers in (2, 8, 32):
        deep = Work(epochs=session.size(4, 1), hidden=(64,) * layers)
        sides[f"trainyard, {2 * layers + 2} tensors"] = partial(ours.trainyard, deep, resident=True, uri=None)
        sides[f"plain PyTorch, {2 * layers + 2} tensors"] = partial(peers.plain, deep)
    values, failed = take_turns(session.fewer(), sides, turns=2)
    names = list(sides)
    comparisons = [Comparison(own, other) for own, other in zip(names[::2], names[1::2], strict=True)]
    yield Table("Step against parameters", unit, values, failed, comparisons)

    notes = session.folder / "conf" / "notes"
    notes.mkdir(parents=True)
    starts = {}
    for keys in (0, 100, 1000):
        (notes / f"of_{keys}.yaml").write_text("".join(f"key_{number}: {number}\n" for number in range(keys)))
        size = [f"--config-dir={notes.parent}", f"+notes=of_{keys}"] if keys else []
        starts[f"{keys} keys more"] = partial(startup.train, session.folder, [*size, "model=mlp", "optim=adam"])
    values, failed = take_turns_here(session.fewer(), starts)
    comparisons = [Comparison(f"{keys} keys more", "0 keys more") for keys in (100, 1000)]
    yield Table("Start-up against the config", "s", values, failed, comparisons)
