"""Several optimizers, each for a part of a model, and their schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from trainyard.errors import ConfigError, TrainyardError
from trainyard.optim import without_dynamo
from trainyard.optim.build import build
from trainyard.schedules import Schedule


class OptimizerDict(Optimizer):
    """Several named optimizers with the interface of a single optimizer with all groups.

    Args:
        optimizers: each with its own parameters.

    Attributes:
        optimizers: the optimizers, by name.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        # It has no groups and no state of its own, so the base class has nothing to set up.
        self.optimizers = dict(optimizers)
        self.defaults = next(iter(self.optimizers.values())).defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Groups of all optimizers, in the order of the names."""
        return list(chain.from_iterable(optimizer.param_groups for optimizer in self.optimizers.values()))

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """State of every parameter."""
        return {key: value for optimizer in self.optimizers.values() for key, value in optimizer.state.items()}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make a step of each optimizer."""
        loss = None if closure is None else closure()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise an error, because a group belongs to one of the optimizers.

        Raises:
            TrainyardError: always.
        """
        raise TrainyardError(
            f"Call add_param_group on one of runner.optimizer.optimizers: {', '.join(self.optimizers)}."
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states by name."""
        return {"optimizers": {name: without_dynamo.method(it, "state_dict")() for name, it in self.optimizers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from `state_dict`.

        Raises:
            ValueError: the state belongs to optimizers with other names, or to other parameter groups.
        """
        states = state_dict["optimizers"]
        if set(states) != set(self.optimizers):
            raise ValueError(f"its optimizers are {', '.join(states)}, but this run has {', '.join(self.optimizers)}")
        for name, optimizer in self.optimizers.items():
            without_dynamo.method(optimizer, "load_state_dict")(states[name])


def build_several(partials: Mapping[str, Any], model: nn.Module) -> OptimizerDict:
    """Build an optimizer for each entry of the model's `optimizer_groups`.

    Args:
        partials: the partials by name, as for `build`.
        model: its `optimizer_groups` maps each name to a submodule's name (`generator`), a glob for the names of
            parameters (`*.embedding.*`), or a list of these.

    Raises:
        ConfigError: the names differ from the names of the model, or an optimizer rejects a number; `key` starts with
            the name.
        ValueError: a trained parameter belongs to no entry, or to several.
    """
    groups: Mapping[str, Any] | None = getattr(model, "optimizer_groups", None)
    kind = type(model).__name__
    if groups is None:
        raise ConfigError("", list(partials), f"one optimizer, because {kind} has no optimizer_groups")
    for name in partials:
        if name not in groups:
            raise ConfigError(
                "", name, f"one of the names in {kind}.optimizer_groups: {_listed(groups)}", options=groups
            )
    parts: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[owner(model, path)].append(parameter)
    made = {}
    for name, parameters in parts.items():
        if not callable(partials.get(name)):
            raise ConfigError(name, partials.get(name), "a config with `_partial_: true` that builds an optimizer")
        try:
            made[name] = build(partials[name], parameters, model)
        except ConfigError as error:
            raise error.under(name) from None
    return OptimizerDict(made)


def owner(model: nn.Module, path: str) -> str:
    """Return the entry of the model's `optimizer_groups` to which the parameter of this name belongs.

    Raises:
        TrainyardError: there is no such entry, or there are several.
    """
    groups: Mapping[str, Any] = getattr(model, "optimizer_groups", {})
    owners = [name for name, patterns in groups.items() if _belongs(path, patterns)]
    if len(owners) != 1:
        kind, found = type(model).__name__, _listed(owners) or "no entry"
        raise TrainyardError(
            f"{kind}.optimizer_groups: the parameter {path} belongs to {found}; it must belong to exactly one entry."
        )
    return owners[0]


def _belongs(path: str, patterns: str | Iterable[str]) -> bool:
    given = [patterns] if isinstance(patterns, str) else patterns
    return any(path == one or path.startswith(f"{one}.") or fnmatchcase(path, one) for one in given)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def schedules_of(schedules: Mapping[str, Any]) -> ScheduleDict:
    """Return the schedules of several optimizers as one schedule.

    Raises:
        ConfigError: a schedule is invalid; the error has the key `schedule`.
    """
    try:
        return ScheduleDict(schedules)
    except ConfigError as error:
        raise error.under("schedule") from None


class ScheduleDict(Schedule):
    """Schedules of several optimizers with the interface of a single schedule; a row has all groups.

    Args:
        schedules: the schedules, by the name of the optimizer; an optimizer without a schedule keeps its values.

    Raises:
        ConfigError: a schedule is not a table (`plateau` reads a metric, and applies to all optimizers together), or
            the units differ.
    """

    def __init__(self, schedules: Mapping[str, Any]) -> None:
        for name, schedule in schedules.items():
            if not isinstance(schedule, Schedule):
                raise ConfigError(name, type(schedule).__name__, "a trainyard.schedules.Schedule")
        units = {name: schedule.by for name, schedule in schedules.items()}
        if len(set(units.values())) > 1:
            first, unit = next((name, unit) for name, unit in units.items() if unit is not None)
            other = next(name for name in units if units[name] != unit)
            accepted = f"{unit}, as for {first}, because the schedules of all optimizers must have the same unit"
            raise ConfigError(f"{other}.by", units[other], accepted)
        self._schedules: dict[str, Schedule] = dict(schedules)
        self.by = next(iter(units.values()), None)
        self.constant = all(schedule.constant for schedule in schedules.values())

    def bind(
        self,
        optimizer: Optimizer,
        *,
        length: float | None,
        direction: Literal["maximize", "minimize"] = "maximize",
        unit: Literal["epoch", "iter"] = "epoch",
        epoch_length: int | None = None,
        certain: bool = True,
    ) -> None:
        """Start a run; see `Schedule.bind`."""
        if not isinstance(optimizer, OptimizerDict):
            raise ConfigError("", list(self._schedules), "one schedule, because there is one optimizer")
        for name, schedule in self._schedules.items():
            if name not in optimizer.optimizers:
                known = optimizer.optimizers
                raise ConfigError("", name, f"the name of an optimizer: {_listed(known)}", options=known)
            try:
                schedule.bind(
                    optimizer.optimizers[name],
                    length=length,
                    direction=direction,
                    unit=unit,
                    epoch_length=epoch_length,
                    certain=certain,
                )
            except ConfigError as error:
                raise error.under(name) from None
        self._counts = {name: len(it.param_groups) for name, it in optimizer.optimizers.items()}

    def follow(self, optimizer: Optimizer) -> None:
        """Include the parameter groups that were added to the optimizers; see `Schedule.follow`."""
        assert isinstance(optimizer, OptimizerDict)
        for name, schedule in self._schedules.items():
            schedule.follow(optimizer.optimizers[name])
        self._counts = {name: len(it.param_groups) for name, it in optimizer.optimizers.items()}

    def row(self, index: int) -> list[dict[str, Any]]:
        """Return the values for each parameter group, in the order of the optimizers; see `Schedule.row`."""
        rows: list[dict[str, Any]] = []
        for name, count in self._counts.items():
            schedule = self._schedules.get(name)
            rows += [{}] * count if schedule is None else schedule.row(index)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return the states by name."""
        return {"schedules": {name: schedule.state_dict() for name, schedule in self._schedules.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`; a schedule without a state starts at the beginning."""
        for name, schedule in self._schedules.items():
            if name in state["schedules"]:
                schedule.load_state_dict(state["schedules"][name])
