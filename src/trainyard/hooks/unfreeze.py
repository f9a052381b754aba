"""Unfreeze hook: trains parameters that were frozen at the start, from an epoch (or iteration) on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.checks import choice, is_integer
from trainyard.errors import ConfigError
from trainyard.models.freeze import fitting_parameters
from trainyard.runner import Runner
from trainyard.runner.hook import Hook


class Unfreeze(Hook):
    """Trains initially frozen parameters (`freeze`) from given epochs (or iterations) on.

    Howard and Ruder, "Universal language model fine-tuning for text classification" (2018), section 3.3, call it
    gradual unfreezing. The parameters are added to the optimizer in separate groups (`Runner.unfreeze`).

    Args:
        at: a mapping from epochs (or iterations), counted from 1, to the parameters that are trained from then on: a
            pattern or a list of patterns, as for `freeze`.
        by: the unit of `at`, `epoch` or `iter`; None is the unit of the loop.
    """

    priority = "VERY_HIGH"  # before the schedule writes its row
    ranks = "one"

    def __init__(self, at: Mapping[int, str | Sequence[str]] | None = None, by: str | None = None) -> None:
        accepted = "a mapping from epochs (or iterations), counted from 1, to patterns or lists of patterns"
        if not isinstance(at, Mapping) or not at or not all(is_integer(key, at_least=1) for key in at):
            raise ConfigError("at", at, accepted)
        if by is not None:
            choice("by", by, ("epoch", "iter"), other="null for the loop's own unit")
        self.at = {int(place): _patterns(f"at.{place}", given) for place, given in at.items()}
        self.by = by

    def sanity_check(self, runner: Runner) -> None:
        for place, patterns in self.at.items():
            fitting_parameters(runner.model, patterns, f"at.{place}")

    def before_train(self, runner: Runner) -> None:
        self._unit = self.by or runner.train_loop.unit

    def before_train_epoch(self, runner: Runner) -> None:
        if self._unit == "epoch":
            self._apply(runner, runner.epoch + 1)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        if self._unit == "iter":
            self._apply(runner, runner.iter + 1)

    def _apply(self, runner: Runner, place: int) -> None:
        if place in self.at:
            runner.unfreeze(self.at[place])


def _patterns(key: str, given: object) -> list[str]:
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list | tuple) or not found or not all(isinstance(each, str) for each in found):
        raise ConfigError(key, given, "a pattern, or a list of at least one pattern (strings)")
    return list(found)
