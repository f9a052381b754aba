"""The order of things in training, validation and testing, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainyard.errors import ConfigError
from trainyard.runner.contract import Loaders, RunState
from trainyard.runner.members import read

Intervals = Sequence[Sequence[int]]


def _at_least_one(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(key, value, "a whole number of at least 1")
    return value


def _pairs(key: str, given: Intervals) -> list[tuple[int, int]]:
    accepted = "pairs [milestone, interval] of whole numbers of at least 1, each milestone above the one before"
    try:
        pairs = [(milestone, interval) for milestone, interval in given]
    except (TypeError, ValueError):
        raise ConfigError(key, given, accepted) from None
    milestones = [milestone for milestone, _ in pairs]
    whole = all(type(number) is int and number >= 1 for pair in pairs for number in pair)
    if not whole or milestones != sorted(set(milestones)):
        raise ConfigError(key, given, accepted)
    return pairs


class TrainLoop(ABC):
    """What both training loops share: counting, one iteration, and when validation runs.

    Args:
        length: how long the run is, in the loop's own unit.
        val_begin: no validation before this epoch (or iteration), counted from 1.
        val_interval: validation runs after every epoch (or iteration) that this divides, and always at the end.
        dynamic_intervals: pairs `(milestone, interval)`: from that epoch (or iteration) on the interval is another.

    Attributes:
        unit: "epoch" or "iter": what `length`, `val_begin` and `val_interval` count.
        val_due: validation runs before the next training iteration. It is part of a checkpoint, so that a run that was
            ended before its validation was through begins with that.
    """

    unit: str

    def __init__(self, length: int, val_begin: int, val_interval: int, dynamic_intervals: Intervals | None) -> None:
        self.length = length
        self.val_begin = _at_least_one("val_begin", val_begin)
        self.val_interval = _at_least_one("val_interval", val_interval)
        self.dynamic_intervals = _pairs("dynamic_intervals", dynamic_intervals or ())
        self.val_due = False

    @abstractmethod
    def max_epochs(self, runner: Loaders) -> int:
        """Epochs in the whole run; the last one may be cut short."""

    @abstractmethod
    def max_iters(self, runner: Loaders) -> int:
        """Iterations in the whole run."""

    @abstractmethod
    def run(self, runner: RunState) -> None:
        """Train from where the runner stands to the end."""

    def validates_after(self, count: int) -> bool:
        """Whether validation follows epoch (or iteration) number `count`, counted from 1."""
        return count == self.length or (count >= self.val_begin and count % self.interval_at(count) == 0)

    def interval_at(self, count: int) -> int:
        """The interval between validations that holds at the end of epoch (or iteration) number `count`."""
        begun = [interval for milestone, interval in self.dynamic_intervals if milestone <= count]
        return begun[-1] if begun else self.val_interval

    def validate(self, runner: RunState) -> None:
        """Run the validation that is due; once it is through, `val_due` is off."""
        if self.val_due:
            runner.val_loop.run(runner)

    def state_dict(self) -> dict[str, Any]:
        return {"val_due": self.val_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.val_due = state["val_due"]


class EpochBasedTrainLoop(TrainLoop):
    """Train for `max_epochs` epochs.

    Args:
        max_epochs: how many.
        val_begin: no validation before this epoch, counted from 1.
        val_interval: epochs between validations; the last epoch is always followed by one.
        dynamic_intervals: pairs `(milestone, interval)`: from that epoch on the interval is another.
    """

    unit = "epoch"

    def __init__(
        self, max_epochs: int, val_begin: int = 1, val_interval: int = 1, dynamic_intervals: Intervals | None = None
    ) -> None:
        super().__init__(_at_least_one("max_epochs", max_epochs), val_begin, val_interval, dynamic_intervals)

    def max_epochs(self, runner: Loaders) -> int:
        return self.length

    def max_iters(self, runner: Loaders) -> int:
        return self.length * len(runner.loader("train"))

    def run(self, runner: RunState) -> None:
        self.validate(runner)
        while runner.epoch < self.length and not runner.stopping:
            self.run_epoch(runner)

    def run_epoch(self, runner: RunState) -> None:
        loader = runner.loader("train")
        before_iter, after_iter = runner.stage("before_train_iter"), runner.stage("after_train_iter")
        step, total = runner.step, len(loader)
        start = runner.iter - runner.epoch * total
        runner.model.train()
        runner.call("before_train_epoch")
        for index, batch in enumerate(loader.batches(runner.epoch, start), start):
            for hook in before_iter:
                hook(runner, index, batch)
            outputs = step(batch, index, total)
            runner.iter += 1
            for hook in after_iter:
                hook(runner, index, batch, outputs)
            if runner.stopping:
                return
        runner.epoch += 1
        self.val_due = self.validates_after(runner.epoch) and runner.has_split("val")
        runner.call("after_train_epoch")
        if not runner.stopping:
            self.validate(runner)


class IterBasedTrainLoop(TrainLoop):
    """Train for `max_iters` iterations over an endless loader, which has epochs of its own underneath.

    Args:
        max_iters: how many.
        val_begin: no validation before this iteration, counted from 1.
        val_interval: iterations between validations; the last iteration is always followed by one.
        dynamic_intervals: pairs `(milestone, interval)`: from that iteration on the interval is another.
    """

    unit = "iter"

    def __init__(
        self, max_iters: int, val_begin: int = 1, val_interval: int = 1000, dynamic_intervals: Intervals | None = None
    ) -> None:
        super().__init__(_at_least_one("max_iters", max_iters), val_begin, val_interval, dynamic_intervals)

    def max_epochs(self, runner: Loaders) -> int:
        return -(-self.length // len(runner.loader("train")))

    def max_iters(self, runner: Loaders) -> int:
        return self.length

    def run(self, runner: RunState) -> None:
        self.validate(runner)
        while runner.iter < self.length and not runner.stopping:
            self.run_epoch(runner)
        if not runner.stopping:
            self.end_epoch(runner)  # of a run that was ended between its last iteration and the validation after it

    def run_epoch(self, runner: RunState) -> None:
        loader = runner.loader("train")
        before_iter, after_iter = runner.stage("before_train_iter"), runner.stage("after_train_iter")
        step, total = runner.step, self.length
        start = runner.iter - runner.epoch * len(loader)
        runner.model.train()
        runner.call("before_train_epoch")
        for index, batch in enumerate(loader.batches(runner.epoch, start), start):
            for hook in before_iter:
                hook(runner, index, batch)
            outputs = step(batch, runner.iter, total)
            runner.iter += 1
            self.val_due = self.validates_after(runner.iter) and runner.has_split("val")
            for hook in after_iter:
                hook(runner, index, batch, outputs)
            if runner.stopping:
                return
            if self.val_due:
                self.validate(runner)
                runner.model.train()
            if runner.iter == total or runner.stopping:
                break
        self.end_epoch(runner)

    def end_epoch(self, runner: RunState) -> None:
        """Count the epoch of the loader underneath, where it is over."""
        if runner.iter == (runner.epoch + 1) * len(runner.loader("train")):
            runner.epoch += 1
            runner.call("after_train_epoch")


class ValLoop:
    """One pass over the validation set: predictions into metrics, metrics into the journal."""

    split = "val"

    def run(self, runner: RunState) -> list[dict[str, float]]:
        """Evaluate `runner.eval_model` on every sample of the split once.

        Returns:
            For each member the results, under `<split>/<metric>`.
        """
        split = self.split
        before_iter, after_iter = runner.stage(f"before_{split}_iter"), runner.stage(f"after_{split}_iter")
        metrics = runner.metrics
        runner.call(f"before_{split}")
        runner.call(f"before_{split}_epoch")
        predict = self._begin(runner)
        with torch.no_grad():
            for index, batch in enumerate(runner.loader(split).batches()):
                for hook in before_iter:
                    hook(runner, index, batch)
                outputs = predict(batch)
                for metric in metrics.values():
                    metric.process(batch, outputs)
                for hook in after_iter:
                    hook(runner, index, batch, outputs)
                if runner.interrupted:
                    return []
            numbers, arrays = self._compute(runner)
        for name, value in arrays.items():
            runner.record_array(name, value)
        results = read(numbers, len(runner.members))
        for solo, values in zip(runner.solos, results, strict=True):
            solo.members[0].record(values, step=solo.iter, epoch=solo.epoch)
        self.judge(runner)
        runner.call(f"after_{split}_epoch", metrics=results[0] if len(results) == 1 else results)
        self.done(runner)
        runner.call(f"after_{split}")
        return results

    def judge(self, runner: RunState) -> None:
        """Hold the results to the objective."""
        if runner.training:
            for member in runner.members:
                member.judge(step=runner.iter, epoch=runner.epoch)

    def done(self, runner: RunState) -> None:
        """The results are in: what is saved from here on need not be validated again."""
        if runner.training:
            runner.train_loop.val_due = False

    def rehearse(self, runner: RunState) -> list[str]:
        """Put one batch through model and metrics and forget it; returns the names that the results will have."""
        predict = self._begin(runner)
        with torch.no_grad():
            batch = next(iter(runner.loader(self.split).batches()))
            outputs = predict(batch)
            for metric in runner.metrics.values():
                metric.process(batch, outputs)
            numbers, _ = self._compute(runner)
        return list(numbers)

    def _begin(self, runner: RunState) -> Callable[[Any], Any]:
        runner.eval_model.eval()
        for metric in runner.metrics.values():
            metric.reset()
        return runner.predict_step(self.split)

    def _compute(self, runner: RunState) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Results that are one number a member, and those that are not, by name."""
        members = len(runner.members)
        numbers: dict[str, Tensor] = {}
        arrays: dict[str, Tensor] = {}
        for name, metric in runner.metrics.items():
            result = metric.compute()
            for key, value in (result if isinstance(result, Mapping) else {name: result}).items():
                (numbers if value.numel() == members else arrays)[f"{self.split}/{key}"] = value
        return numbers, arrays


class TestLoop(ValLoop):
    """One pass over the test set; it ranks nothing."""

    split = "test"
    __test__ = False  # not a test case, whatever pytest makes of the name

    def judge(self, runner: RunState) -> None:
        """Test results choose nothing."""

    def done(self, runner: RunState) -> None:
        """A test changes nothing of the training's state."""
