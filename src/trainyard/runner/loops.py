"""Training loops: the order of events only."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from trainyard.checks import integer, is_integer
from trainyard.data.lengths import exact_length, length_hint, no_batches
from trainyard.errors import ConfigError
from trainyard.runner import workflow as turns
from trainyard.runner.workflow import Entries, Workflow

if TYPE_CHECKING:
    from trainyard.runner.parts import Parts
    from trainyard.runner.runner import Runner

log = logging.getLogger(__name__)

Intervals = Sequence[Sequence[int]]


def _pairs(key: str, given: Intervals) -> list[tuple[int, int]]:
    accepted = (
        "null, or pairs [milestone, interval] of integers of at least 1, each milestone larger than the one before"
    )
    try:
        pairs = [(milestone, interval) for milestone, interval in given]
    except (TypeError, ValueError):
        raise ConfigError(key, given, accepted) from None
    milestones = [milestone for milestone, _ in pairs]
    integers = all(is_integer(each, at_least=1) for pair in pairs for each in pair)
    if not integers or milestones != sorted(set(milestones)):
        raise ConfigError(key, given, accepted)
    return pairs


class TrainLoop(ABC):
    """Base class of training loops. It determines when validations and the turns of the workflow run.

    Args:
        length: the length of the run, in the loop's unit.
        val_begin: no validation runs before this epoch (or iteration), counted from 1.
        val_interval: validation runs after every epoch (or iteration) that is a multiple of this number, and at the
            end.
        dynamic_intervals: pairs `(milestone, interval)`: each interval applies from its milestone (an epoch or
            iteration) on.
        workflow: turns of training and of validation by losses; see `Workflow`. None: no validation turns.

    Attributes:
        unit: "epoch" or "iter": the unit of `length`, `val_begin`, `val_interval` and the turns of the workflow.
        ends: of a stack, the counts after which the training of a member ends; the last count is `length`.
        stages: additional stages, which a custom loop calls with `runner.call`; hooks may have methods with these
            names.
        val_due: a validation must run before the next training iteration. Checkpoints contain this value, so that a
            resumed run first completes an unfinished validation.
    """

    unit: str
    stages: tuple[str, ...] = ()

    def __init__(
        self,
        length: int,
        val_begin: int,
        val_interval: int,
        dynamic_intervals: Intervals | None = None,
        workflow: Entries | None = None,
    ) -> None:
        self.length = length
        self.ends: Collection[int] = ()
        self.val_begin = integer("val_begin", val_begin, at_least=1)
        self.val_interval = integer("val_interval", val_interval, at_least=1)
        self.dynamic_intervals = _pairs("dynamic_intervals", dynamic_intervals or ())
        self.workflow = Workflow([("train", 1)] if workflow is None else workflow)
        self.val_due = False
        self._turned: int | None = None
        self._val_places: turns.Places = {}

    @abstractmethod
    def max_epochs(self, runner: Parts) -> int | None:
        """Return the number of epochs in the complete run; the last epoch can be incomplete; see `max_iters`."""

    @abstractmethod
    def max_iters(self, runner: Parts) -> int | None:
        """Return the number of iterations in the complete run.

        In the unit of the loop, the number is exact. In the other unit, it is derived from the length of the training
        data. It can then be an estimate, and is None if the data has no length.
        """

    @abstractmethod
    def run(self, runner: Runner) -> None:
        """Train from the runner's current iteration to the end."""

    def validates_after(self, count: int) -> bool:
        """Return whether validation follows epoch (or iteration) number `count`, counted from 1."""
        return (
            count == self.length
            or count in self.ends
            or (count >= self.val_begin and count % self.interval_at(count) == 0)
        )

    def interval_at(self, count: int) -> int:
        """Return the interval between validations that applies at the end of epoch (or iteration) number `count`."""
        begun = [interval for milestone, interval in self.dynamic_intervals if milestone <= count]
        return begun[-1] if begun else self.val_interval

    def validate(self, runner: Runner) -> None:
        """Run the validation that is due, and set `val_due` to False when it has finished."""
        if self.val_due:
            runner.val_loop.run(runner)

    def turn_due(self, runner: Runner) -> int:
        """Return the number of validation epochs (or batches) due before the next training iteration."""
        count = runner.epoch if self.unit == "epoch" else runner.iter
        return self.workflow.turn(count, self.length) if self.workflow and self._turned != count else 0

    def take_turn(self, runner: Runner) -> None:
        """Run the workflow's validation turn, if one is due."""
        units = self.turn_due(runner)
        if units and not runner.stopping:
            count = runner.epoch if self.unit == "epoch" else runner.iter
            if turns.val_losses(runner, self.unit, self.workflow.before(count), units, self._val_places):
                self._turned = count

    def sanity_check(self, runner: Runner) -> None:
        """Run checks that are specific to this loop.

        Raises:
            ConfigError: a check fails.
        """
        if self.workflow:
            turns.sanity_check(runner, self.workflow.entries)

    def state_dict(self) -> dict[str, Any]:
        places = {name: list(place) for name, place in self._val_places.items()}
        return {"val_due": self.val_due, "turned": self._turned, "val_places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.val_due = state["val_due"]
        self._turned = state["turned"]
        self._val_places = {name: (epoch, batch) for name, (epoch, batch) in state.get("val_places", {}).items()}


class EpochBasedTrainLoop(TrainLoop):
    """Trains for `max_epochs` epochs.

    Args:
        max_epochs: the number of epochs.
        val_begin: no validation runs before this epoch, counted from 1.
        val_interval: epochs between two validations; a validation always follows the last epoch.
        dynamic_intervals: pairs `(milestone, interval)`: each interval applies from its milestone (an epoch) on.
        workflow: for example `[["train", 2], ["val", 1]]`: a validation by losses after every two epochs.
    """

    unit = "epoch"

    def __init__(
        self,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: Intervals | None = None,
        workflow: Entries | None = None,
    ) -> None:
        length = integer("max_epochs", max_epochs, at_least=1)
        super().__init__(length, val_begin, val_interval, dynamic_intervals, workflow)

    def max_epochs(self, runner: Parts) -> int:
        return self.length

    def max_iters(self, runner: Parts) -> int | None:
        hint = length_hint(runner.loader("train"))
        return None if hint is None else self.length * hint

    def sanity_check(self, runner: Runner) -> None:
        super().sanity_check(runner)
        if length_hint(runner.loader("train")) is None:
            log.info(
                "The training data has no length: an epoch lasts until the data ends. For endless data, set a "
                "number of iterations: loop=iter (IterBasedTrainLoop)."
            )

    def run(self, runner: Runner) -> None:
        self.validate(runner)
        self.take_turn(runner)
        while runner.epoch < self.length and not runner.stopping:
            self.run_epoch(runner)

    def run_epoch(self, runner: Runner) -> None:
        before_iter, after_iter = runner.stage("before_train_iter"), runner.stage("after_train_iter")
        step, reader, start = runner.step, runner.reader, runner.batches_done
        runner.model.train()
        runner.call("before_train_epoch")
        if runner.stopping:
            return
        for index, batch in enumerate(reader.batches(runner.epoch, start, step.accumulate, step), start):
            for hook in before_iter:
                hook(runner, index, batch)
            outputs = step(batch, index, reader.total)
            runner.iter += 1
            for hook in after_iter:
                hook(runner, index, batch, outputs)
            if runner.stopping:
                return
        if not runner.batches_done:
            raise no_batches("train", runner.epoch)
        runner.epoch += 1
        self.val_due = self.validates_after(runner.epoch) and runner.has_split("val")
        runner.call("after_train_epoch")
        if not runner.stopping:
            self.validate(runner)
            self.take_turn(runner)


class IterBasedTrainLoop(TrainLoop):
    """Trains for `max_iters` iterations over an endless loader. The underlying loader has epochs.

    Args:
        max_iters: the number of iterations.
        val_begin: no validation runs before this iteration, counted from 1.
        val_interval: iterations between two validations; a validation always follows the last iteration.
        dynamic_intervals: pairs `(milestone, interval)`: each interval applies from its milestone (an iteration) on.
        workflow: for example `[["train", 100], ["val", 5]]`: the losses of 5 validation batches after every 100
            iterations.
    """

    unit = "iter"

    def __init__(
        self,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: Intervals | None = None,
        workflow: Entries | None = None,
    ) -> None:
        length = integer("max_iters", max_iters, at_least=1)
        super().__init__(length, val_begin, val_interval, dynamic_intervals, workflow)

    def max_epochs(self, runner: Parts) -> int | None:
        hint = length_hint(runner.loader("train"))
        return None if hint is None else -(-self.length // hint)

    def max_iters(self, runner: Parts) -> int:
        return self.length

    def run(self, runner: Runner) -> None:
        self.validate(runner)
        self.take_turn(runner)
        while runner.iter < self.length and not runner.stopping:
            self.run_epoch(runner)
        if not runner.stopping:
            self.end_epoch(runner)  # the run ended between its last iteration and the validation after it

    def run_epoch(self, runner: Runner) -> None:
        before_iter, after_iter = runner.stage("before_train_iter"), runner.stage("after_train_iter")
        step, start = runner.step, runner.batches_done
        runner.model.train()
        runner.call("before_train_epoch")
        if runner.stopping:
            return
        for index, batch in enumerate(runner.reader.batches(runner.epoch, start, step=step), start):
            for hook in before_iter:
                hook(runner, index, batch)
            outputs = step(batch, runner.iter, self.length)
            runner.iter += 1
            self.val_due = self.validates_after(runner.iter) and runner.has_split("val")
            for hook in after_iter:
                hook(runner, index, batch, outputs)
            if runner.stopping:
                return
            if self.val_due or self.turn_due(runner):
                self.validate(runner)
                self.take_turn(runner)
                runner.model.train()
                if runner.interrupted and (self.val_due or self.turn_due(runner)):
                    return  # it was interrupted, and comes again before the epoch is counted
            if runner.iter == self.length or runner.stopping:
                self.end_epoch(runner)
                return
        self.end_epoch(runner, ended=True)

    def end_epoch(self, runner: Runner, *, ended: bool = False) -> None:
        """Count the epoch of the underlying loader if it has `ended` or has no more batches.

        Raises:
            TrainyardError: the epoch had no batch.
        """
        done = runner.batches_done
        if ended and not done:
            raise no_batches("train", runner.epoch)
        if ended or done == exact_length(runner.loader("train")):
            runner.epoch += 1
            runner.call("after_train_epoch")
