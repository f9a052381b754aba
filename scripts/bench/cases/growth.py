"""Growth of the time of an iteration with hooks, metrics, parameters and members; growth of the start with the config.

The training is that of the case `step`, on resident data, without MLflow. An idle hook defines stages of a run, an
epoch and a checkpoint; hooks "at work" have an empty `after_train_iter`. The metrics are copies of `Accuracy` and
`CrossEntropy`, and a validation batch has 256 samples. The parameter tensors are those of layers of width 64. "Plain
PyTorch" uses torch's default Adam, or the fused Adam. The members are those of the case `fused`, on one core; one
member is a single run.

**Result:** idle hooks and metrics do not slow down a training step. With many parameters, Trainyard is as fast as the
plain loop with the fused Adam.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import ours
import peers
from measure import Comparison, Session, Side, Table, Turn, take_turns, take_turns_here
from work import Work

from cases import fused, startup, validation
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


def named(count: int) -> str:
    return f"{count} metric{'s' * (count != 1)}"


EPOCHS = {2: 4, 8: 4, 32: 4, 128: 1, 499: 1}
"""Epochs of 100 iterations, by the number of layers."""


def parameters(session: Session) -> Table:
    """Measure an iteration with 6 to 1,000 tensors of parameters."""
    sides: dict[str, Side] = {}
    comparisons = []
    for layers, epochs in EPOCHS.items():
        if session.quick and layers > 8:
            continue
        work = Work(epochs=session.size(epochs, 1), hidden=(64,) * layers)
        size = f"{2 * layers + 2:,} tensors"
        own = f"trainyard, {size}"
        others = {f"plain PyTorch, fused Adam, {size}": partial(peers.plain, work, fused=True)}
        if layers <= 32:
            others[f"plain PyTorch, {size}"] = partial(peers.plain, work)
        sides |= {own: partial(ours.trainyard, work, resident=True, uri=None), **others}
        comparisons += [Comparison(own, other) for other in others]
    values, failed = take_turns(session.fewer(), sides, turns=2)
    return Table("Step against parameters", "µs per iteration", values, failed, comparisons)


def members(session: Session) -> Table:
    """Measure the step of a member in stacks of several widths."""
    seconds = session.size(10, 1) / 10
    widths = (1, 4, 16) if session.quick else (1, 4, 16, 64, 256)
    names = {width: f"{width} member{'s' * (width > 1)}" for width in widths}
    sides: dict[str, Side] = {name: partial(stack, width, seconds) for width, name in names.items()}
    values, failed = take_turns(session.fewer(), sides, turns=1)
    comparisons = [Comparison(names[width], names[1]) for width in widths[1:]]
    return Table("Step against members", "µs per member step, on one core", values, failed, comparisons)


@contextmanager
def stack(width: int, seconds: float) -> Iterator[Turn]:
    run = fused.stepping("MLP", width)

    def turn() -> float:
        begin = perf_counter()
        steps = run(seconds)
        return (perf_counter() - begin) / steps * 1e6

    yield turn


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

    sides = {named(count): partial(side, metrics=metrics(count)) for count in (0, 8, 32)}
    values, failed = take_turns(session.fewer(), sides, turns=9, together=True)
    comparisons = [Comparison(named(count), named(0)) for count in (8, 32)]
    yield Table("Step against metrics", unit, values, failed, comparisons)

    rows = Work(samples=25_600, batch=256, epochs=session.size(5, 1))
    sides = {
        named(count): partial(
            validation.trainyard, rows, resident=True, metrics=metrics(count), objective="val/metric0"
        )
        for count in (1, 2, 8, 32)
    }
    values, failed = take_turns(session.fewer(), sides, turns=2)
    comparisons = [Comparison(named(count), named(1)) for count in (2, 8, 32)]
    yield Table("Validation against metrics", "µs per batch", values, failed, comparisons)

    yield parameters(session)
    yield members(session)

    notes = session.folder / "conf" / "notes"
    notes.mkdir(parents=True)
    starts = {}
    for keys in (0, 100, 1000):
        (notes / f"of_{keys}.yaml").write_text("".join(f"key_{number}: {number}\n" for number in range(keys)))
        size = [f"--config-dir={notes.parent}", f"+notes=of_{keys}"] if keys else []
        starts[f"{keys:,} additional keys"] = partial(startup.train, session.folder, [*size, "model=mlp", "optim=adam"])
    values, failed = take_turns_here(session.fewer(), starts)
    comparisons = [Comparison(f"{keys:,} additional keys", "0 additional keys") for keys in (100, 1000)]
    yield Table("Start-up against the config", "s", values, failed, comparisons)
