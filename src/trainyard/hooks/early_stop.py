"""Early stopping hook: ends training when a metric stops improving or is good enough."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.checks import boolean, choice, integer, number
from trainyard.errors import counted
from trainyard.runner import Member, Objective, Runner
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")


class EarlyStopping(Hook):
    """Ends a member's training after `patience` consecutive validations without an improvement by `min_delta`.

    Args:
        monitor: the monitored metric; None: the objective of the run.
        direction: `maximize` or `minimize`; None: the direction of the run.
        patience: the number of validations to wait.
        min_delta: a value counts as an improvement if it is better than the last such value by more than this number.
        strict: True: an unknown metric causes an error before the training. False: each value is judged only once, and
            validations without a new value of the metric are skipped, with one warning.
        check_finite: True: a value of NaN or infinity ends the member as failed. False: this value does not count as an
            improvement.
        stopping_threshold: the training ends immediately if the metric reaches this value.
    """

    priority = "NORMAL"
    stackable = True
    own_places = True

    def __init__(
        self,
        monitor: str | None = None,
        direction: Any = None,
        patience: int = 5,
        min_delta: float = 0.0,
        strict: bool = True,
        check_finite: bool = False,
        stopping_threshold: float | None = None,
    ) -> None:
        if direction is not None:
            choice("direction", direction, ("maximize", "minimize"), other="null for the direction of the run")
        if stopping_threshold is not None:
            stopping_threshold = number(
                "stopping_threshold", stopping_threshold, finite=False, other="null for no threshold"
            )
        if boolean("strict", strict):
            self.monitor = monitor  # read by the sanity check, which requires that it is computed
        self.direction = direction
        self.patience = integer("patience", patience, at_least=1)
        self.min_delta = number("min_delta", min_delta, at_least=0)
        self.strict = strict
        self.check_finite = boolean("check_finite", check_finite)
        self.stopping_threshold = stopping_threshold
        self._name = monitor
        self._told = False
        self._best: dict[int, float | None] = {}
        self._waited: dict[int, int] = {}
        self._judged: dict[int, int | None] = {}  # the step of the last value that was judged

    def before_train(self, runner: Runner) -> None:
        own = runner.members[0].objective
        self._objective = Objective(self._name or own.name, self.direction or own.direction)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not runner.training:
            return
        name = self._objective.name
        for index, member in enumerate(runner.members):
            if not member.due:
                continue
            step = member.metric_steps.get(name)
            if self.strict or step not in (None, self._judged.get(index)):
                self._judged[index] = step
                self._judge(index, member, member.latest(name, "hook.early_stop.monitor"))
            elif not self._told:
                self._told = True
                log.warning("Early stopping skips validations without a new value of the monitored metric %s.", name)

    def _judge(self, index: int, member: Member, value: float) -> None:
        name, threshold, best = self._objective.name, self.stopping_threshold, self._best.get(index)
        finite = math.isfinite(value)
        if self.check_finite and not finite:
            member.stop(f"{name} is {value}", failed=True)
            return
        if threshold is not None and (value == threshold or self._objective.better(value, threshold)):
            member.stop(f"{name} has reached {value:.6g} (stopping_threshold {threshold:.6g})")
            return
        if finite and self._objective.better(value, best, by=self.min_delta):
            self._best[index] = value
            self._waited[index] = 0
            return
        self._waited[index] = self._waited.get(index, 0) + 1
        if self._waited[index] >= self.patience:
            least = f" by more than {self.min_delta:g}" if self.min_delta else ""
            than = "" if best is None else f" on {best:.6g}{least}"
            member.stop(f"{name} has not improved{than} for {counted(self.patience, 'validation')}")

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        judged = self._judged.get(member)
        return {"best": self._best.get(member), "waited": self._waited.get(member, 0), "judged": judged}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._best[member], self._waited[member] = state["best"], state["waited"]
        self._judged[member] = state.get("judged")  # older checkpoints do not contain it

    def refill(self, runner: Runner, members: Mapping[int, Hook | None]) -> None:
        for lane in members:
            self._best.pop(lane, None)
            self._waited.pop(lane, None)
            self._judged.pop(lane, None)

    def keep(self, members: Sequence[int]) -> None:
        self._best = {new: self._best.get(old) for new, old in enumerate(members)}
        self._waited = {new: self._waited.get(old, 0) for new, old in enumerate(members)}
        self._judged = {new: self._judged.get(old) for new, old in enumerate(members)}
