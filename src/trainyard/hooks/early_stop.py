"""Stop when the objective no longer gets better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainyard.errors import ConfigError
from trainyard.hooks.hook import Hook
from trainyard.runner import Objective, Runner


class EarlyStopping(Hook):
    """Ends a member's training after `patience` validations in a row that did not better its best by `min_delta`.

    Args:
        monitor: the metric to watch; None is the run's objective.
        direction: `maximize` or `minimize`; None is the run's direction.
        patience: validations to wait.
        min_delta: how much better counts as better.
    """

    priority = "NORMAL"
    stackable = True

    def __init__(
        self,
        monitor: str | None = None,
        direction: Any = None,
        patience: int = 5,
        min_delta: float = 0.0,
    ) -> None:
        Objective("", direction or "minimize")  # refuses a direction that is neither
        if not isinstance(patience, int) or patience < 1:
            raise ConfigError("patience", patience, "a whole number of at least 1")
        if min_delta < 0:
            raise ConfigError("min_delta", min_delta, "a number of at least 0")
        self.monitor = monitor
        self.direction = direction
        self.patience = patience
        self.min_delta = min_delta
        self._best: dict[int, float | None] = {}
        self._waited: dict[int, int] = {}

    def before_train(self, runner: Runner) -> None:
        own = runner.members[0].objective
        self._objective = Objective(self.monitor or own.name, self.direction or own.direction)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not runner.training:
            return
        for index, member in enumerate(runner.members):
            name = self._objective.name
            value = member.latest(name, "hook.early_stop.monitor")
            best = self._best.get(index)
            if self._objective.better(value, best, by=self.min_delta):
                self._best[index] = value
                self._waited[index] = 0
                continue
            self._waited[index] = self._waited.get(index, 0) + 1
            if self._waited[index] >= self.patience:
                than = "" if best is None else f" than {best:.6g}"
                member.stop(f"{name} has not got better{than} for {self.patience} validations")

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"best": self._best.get(member), "waited": self._waited.get(member, 0)}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._best[member], self._waited[member] = state["best"], state["waited"]

    def keep(self, members: Sequence[int]) -> None:
        self._best = {new: self._best.get(old) for new, old in enumerate(members)}
        self._waited = {new: self._waited.get(old, 0) for new, old in enumerate(members)}
