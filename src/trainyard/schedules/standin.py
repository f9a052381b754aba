"""Stand-in optimizer, which a scheduler changes instead of the real one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from trainyard._torch_internals import unwrapped
from trainyard.errors import ConfigError

PARAMS = ("lr", "momentum", "weight_decay")
"""The numbers of a parameter group that a schedule can change."""


class _Group(dict[str, Any]):
    """A parameter group that records which of its keys were written."""

    def __init__(self, values: Mapping[str, Any], written: set[str]) -> None:
        super().__init__(values)
        self._written = written

    def __setitem__(self, key: str, value: Any) -> None:
        self._written.add(key)
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value


class StandIn(Optimizer):
    """An optimizer with the groups and numbers of another one but no parameters, into which a scheduler writes.

    Args:
        groups: the numbers of each parameter group (see `groups_of`).
        defaults: `optimizer.defaults`; schedulers look there for `momentum` or `betas`.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
        self.written: set[str] = set()
        """The keys that a scheduler has written so far, in any group."""
        self.base = [dict(group) for group in groups]
        """The groups before any scheduler wrote."""
        params = [_Group({**group, "params": [torch.zeros(1)]}, self.written) for group in self.base]
        super().__init__(params, numbers(defaults))
        self.written.clear()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        unwrapped(Optimizer.add_param_group)(self, param_group)  # the wrapper imports torch._dynamo

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing; schedulers expect one call before their own step."""


def standin_of(groups: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any], param: str = "lr") -> StandIn:
    """Return a stand-in with which a scheduler changes one number of an optimizer: its `lr` is this number.

    Args:
        groups: the groups of the optimizer, from `groups_of`.
        defaults: the defaults of the optimizer, from `numbers`.
        param: one of `PARAMS`.

    Raises:
        ConfigError: the optimizer has no such number.
    """
    if param == "lr":
        return StandIn(groups, defaults)
    if any(_place(group, param) is None for group in groups):
        found = [name for name in PARAMS if all(_place(group, name) is not None for group in groups)]
        raise ConfigError("param", param, f"a numeric hyperparameter of this optimizer: {', '.join(found)}")
    driven = []
    for group in groups:
        value = group[str(_place(group, param))]
        driven.append({"lr": value[0] if isinstance(value, tuple) else value})
    return StandIn(driven, {})


def entry(group: Mapping[str, Any], param: str, value: Any) -> dict[str, Any]:
    """Return the entries of a parameter group whose number `param` is `value`."""
    key = str(_place(group, param))
    return {key: (value, *group[key][1:]) if isinstance(group[key], tuple) else value}


def _place(group: Mapping[str, Any], param: str) -> str | None:
    """Return the key of the number: the momentum of Adam and similar optimizers is the first of the betas."""
    keys = ("momentum", "betas") if param == "momentum" else (param,)
    return next((key for key in keys if key in group), None)


def groups_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the numbers of each parameter group.

    A group with an `initial_lr` was scheduled before; a schedule starts at this value, not at the current `lr`.
    """
    groups = [numbers(group) for group in optimizer.param_groups]
    return [{**group, "lr": group.get("initial_lr", group["lr"])} for group in groups]


def joined_entry(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the part of a schedule's state about the parameter groups that joined after `bind`; empty if there are
    none."""
    return {"joined": plain(groups)} if groups else {}


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` on which a schedule can depend: numbers, tuples of numbers, and names.

    Tensors of one element become floats. Switches (`fused`, `foreach`) are omitted, because they may differ between the
    machine on which a run started and the one on which it is resumed.
    """
    found = {}
    for key, value in values.items():
        value = tuple(_item(item) for item in value) if isinstance(value, (tuple, list)) else _item(value)
        items = value if isinstance(value, tuple) else (value,)
        if all(isinstance(item, (int, float, str)) and not isinstance(item, bool) for item in items):
            found[key] = value
    found.pop("param_names", None)
    return found


def plain(value: Any) -> Any:
    """Copy `value` in types that `torch.load(weights_only=True)` opens and `==` compares.

    Raises:
        TypeError: `value` contains anything else (a function, a tensor).
    """
    if value is None or type(value) in (bool, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):  # numpy's float64 too
        return float(value)
    if isinstance(value, Counter):
        return Counter(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    raise TypeError(f"{type(value).__name__} is not plain data")


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
