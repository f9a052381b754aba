"""Plateau schedule, which lowers the learning rate (or another number) when a metric stops improving."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainyard.checks import choice, integer, number
from trainyard.errors import ConfigError, counted
from trainyard.schedules.part import check_position, positions
from trainyard.schedules.schedule import Row
from trainyard.schedules.standin import PARAMS, entry, groups_of, joined_entry, numbers, plain, standin_of
from trainyard.schedules.window import Unit

_MODES: dict[str, Literal["min", "max"]] = {"minimize": "min", "maximize": "max"}
_HISTORY = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def in_group_order(state: dict[str, Any], groups: Sequence[int]) -> dict[str, Any]:
    """Return the state of a schedule with its values, if it has one for each parameter group, in another order.

    Args:
        state: the state of any schedule.
        groups: for each group, its number in `state`.
    """
    return {**state, "values": [state["values"][number] for number in groups]} if "values" in state else state


class Plateau:
    """`torch.optim.lr_scheduler.ReduceLROnPlateau`, with the interface of `Schedule`.

    `observe` steps the scheduler once for every value of its metric, so `patience` and `cooldown` count values of the
    metric, usually validations. The factor of a warm-up multiplies the values.

    Args:
        monitor: the metric's name (`val/loss`); None for the run's objective.
        mode: "min" or "max": the direction of the metric; None for the direction of the run.
        factor: the factor by which a reduction multiplies the learning rate, in (0, 1).
        patience: the number of values without an improvement before a reduction.
        threshold: the minimum improvement.
        threshold_mode: "rel": `threshold` is a fraction of the best value; "abs": `threshold` is an absolute
            difference.
        cooldown: the number of values that are ignored after a reduction.
        min_lr: the minimum: one number for all groups, or one number per group.
        eps: the minimum change; smaller changes are skipped.
        param: the scheduled value: "lr", "momentum" (for Adam and similar optimizers, the first of the betas) or
            "weight_decay".
        warmup: the length of a linear warm-up at the start, as an integer or a fraction of the run.
        warmup_factor: the fraction of the value at which the warm-up starts, in (0, 1].
        by: the unit of the warm-up: "epoch", "iter", or None for the unit of the training loop.

    Raises:
        ConfigError: a value is invalid.

    Attributes:
        warmed: the epoch or iteration at which the warm-up ends; 0 without a warm-up.
    """

    by: Unit | None
    constant = False

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        *,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
        param: str = "lr",
        warmup: float = 0,
        warmup_factor: float = 1e-3,
        by: Unit | None = None,
    ) -> None:
        choice("param", param, PARAMS)
        if by is not None:
            choice("by", by, ("epoch", "iter"), other="null for the loop's own unit")
        check_position("warmup", warmup, at_least=0)
        self.by = by
        self.warmed = 0
        self._warmup = warmup
        self._warmup_factor = number("warmup_factor", warmup_factor, above=0, at_most=1)
        if mode is not None:
            choice("mode", mode, ("min", "max"), other="null for the run's direction")
        floors: Any = min_lr
        if isinstance(min_lr, (list, tuple)):
            floors = [number(f"min_lr.{index}", floor, at_least=0) for index, floor in enumerate(min_lr)]
        else:
            number("min_lr", min_lr, at_least=0, other="a list with one number for each parameter group")
        self.monitor = monitor
        self._mode = mode
        self._param = param
        self._arguments: dict[str, Any] = {
            "factor": number("factor", factor, above=0, below=1),
            "patience": integer("patience", patience, at_least=0),
            "threshold": number("threshold", threshold, at_least=0),
            "threshold_mode": choice("threshold_mode", threshold_mode, ("rel", "abs")),
            "cooldown": integer("cooldown", cooldown, at_least=0),
            "min_lr": floors,
            "eps": number("eps", eps, at_least=0),
        }

    def bind(
        self,
        optimizer: Optimizer,
        *,
        length: float | None,
        direction: Literal["maximize", "minimize"] = "maximize",
        unit: Unit = "epoch",
        epoch_length: int | None = None,
        certain: bool = True,
    ) -> None:
        """Start a run; call this method before the optimizer's state is loaded from a checkpoint.

        Args:
            optimizer: the optimizer, which is only read. The learning rates of its groups are the initial values.
            length: the length of the complete run, in this schedule's unit; None if it is unknown. The length is
                required if the warm-up is a fraction.
            unit, epoch_length, certain: unused; `Schedule` has the same signature.
            direction: the direction of the run's objective, which is used if `mode` is None.

        Raises:
            ConfigError: `direction` is invalid, `min_lr` lacks a value for a group, the optimizer does not have the
                scheduled value, or the warm-up is not shorter than the run.
        """
        self.warmed = positions("warmup", [self._warmup], inf if length is None else length)[0]
        if length is not None and self.warmed >= length:
            raise ConfigError("warmup", self._warmup, f"less than {length}, so that steps remain after the warm-up")
        if direction not in _MODES:
            raise ConfigError("direction", direction, "maximize or minimize", options=tuple(_MODES))
        groups = self._groups = groups_of(optimizer)
        floors = self._arguments["min_lr"]
        if isinstance(floors, list) and len(floors) != len(groups):
            accepted = f"one number, or a list of {counted(len(groups), 'number')}, one for each parameter group"
            raise ConfigError("min_lr", floors, accepted)
        self._standin = standin_of(groups, numbers(optimizer.defaults), self._param)
        self._scheduler = ReduceLROnPlateau(self._standin, mode=self._mode or _MODES[direction], **self._arguments)
        self._joined: list[dict[str, Any]] = []
        self._row = self._read()

    def row(self, index: int) -> Row:
        """Return the current values for each parameter group in epoch or iteration `index`: `[{"lr": …}, …]`.

        `index` is used only in a warm-up, as in `torch.optim.lr_scheduler.LinearLR`.
        """
        if index >= self.warmed:
            return self._row
        first = self._warmup_factor
        return self._read(first + (1 - first) * index / self.warmed)

    def follow(self, optimizer: Optimizer) -> None:
        """Include the parameter groups that were added to the optimizer; each group starts with its own value.

        Raises:
            ConfigError: `min_lr` is a list, which has no values for the new groups.
        """
        self._join(groups_of(optimizer)[len(self._groups) :])

    def _join(self, added: list[dict[str, Any]]) -> None:
        if not added:
            return
        self._groups += added
        self._joined += added
        floors = self._arguments["min_lr"]
        if isinstance(floors, list):
            raise ConfigError(
                "min_lr", floors, f"one number, because there are now {len(self._groups)} parameter groups"
            )
        for group in standin_of(added, {}, self._param).param_groups:
            self._standin.add_param_group(dict(group))
        self._row = self._read()

    def observe(self, value: float) -> None:
        """Read the next value of the metric, and reduce the learning rate if a reduction is due."""
        self._scheduler.step(value)
        self._row = self._read()

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers and observations as plain data."""
        history = {key: getattr(self._scheduler, key) for key in _HISTORY}
        values = [group["lr"] for group in self._standin.param_groups]
        return {"values": values, "history": history} | joined_entry(self._joined)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state` with the arguments of this plateau; call this method after `bind`."""
        self._join(plain(state.get("joined", [])))
        for group, value in zip(self._standin.param_groups, state["values"], strict=True):
            group["lr"] = value
        self._scheduler.load_state_dict(dict(state["history"]))
        self._row = self._read()

    def _read(self, share: float = 1.0) -> Row:
        held = zip(self._groups, self._standin.param_groups, strict=True)
        return [entry(base, self._param, group["lr"] * share) for base, group in held]
