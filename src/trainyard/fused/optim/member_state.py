"""State of a member's optimizer, in the form of the `state_dict()` of its single-run optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from trainyard.errors import Unfusable


class Stacked(Protocol):
    """Protocol of a stacked optimizer, as used here."""

    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]
    clock: ClassVar[tuple[str, ...]]
    shaping: ClassVar[tuple[str, ...]]

    @property
    def state(self) -> Any: ...

    def new_state(self, group: dict[str, Any], param: Tensor) -> dict[str, Tensor]: ...

    def has(self, group: dict[str, Any], state: Mapping[str, Tensor], member: int) -> list[str]: ...

    def steps_of(self, saved: Mapping[str, Any]) -> Tensor | float: ...


def scalar_dtype() -> torch.dtype:
    """Return the dtype in which torch's optimizers count steps."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def numbers_of(optimizer: Stacked, group: Mapping[str, Any], member: int) -> dict[str, Any]:
    """Return the numbers of a member as floats, and the flags, without `params`."""
    numbers = {key: _number(value, member) for key, value in group.items() if key != "params"}
    if "betas" in numbers:
        numbers["betas"] = type(optimizer.defaults["betas"])(numbers["betas"])  # a config gives a list
    return numbers


def read(optimizer: Stacked, member: int) -> dict[str, Any]:
    """Return the `state_dict()` of a member; its tensors are copies."""
    groups = []
    first = 0
    for group in optimizer.param_groups:
        indices = list(range(first, first + len(group["params"])))
        groups.append({**numbers_of(optimizer, group, member), "params": indices})
        first += len(indices)
    states = {}
    for index, (group, param) in enumerate(_params(optimizer)):
        state = optimizer.state.get(param)
        names = optimizer.has(group, state, member) if state else []
        if state and names:
            on_device = group.get("fused") or group.get("capturable")
            states[index] = {
                name: state[name][member]
                .clone()
                .to(param.device if on_device or name not in optimizer.clock else "cpu")
                for name in names
            }
    return {"state": states, "param_groups": groups}


def write(optimizer: Stacked, member: int, state_dict: Mapping[str, Any]) -> bool:
    """Load a `state_dict()` into a member; return whether all states are still the same tensors."""
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(optimizer.param_groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    indices: dict[Any, int] = {}
    for group, saved in zip(optimizer.param_groups, saved_groups, strict=True):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of the optimizer's group"
            )
        for flag in optimizer.shaping:
            if flag in saved and bool(saved[flag]) != bool(group[flag]):
                raise Unfusable(
                    f"optim.{flag} is {group[flag]}, but was {saved[flag]} when the checkpoint was saved: "
                    "a stack cannot continue with another value"
                )
        for position in saved["params"]:
            indices[position] = len(indices)
    states = {indices[key]: saved for key, saved in state_dict["state"].items() if key in indices}
    for index, (_, param) in enumerate(_params(optimizer)):
        if index in states:  # torch casts all but the step to the parameter's dtype when it loads
            states[index] = {
                name: value.to(param.dtype) if isinstance(value, Tensor) and name != "step" else value
                for name, value in states[index].items()
            }
    in_place = write_states(optimizer, member, states)
    for group, saved in zip(optimizer.param_groups, saved_groups, strict=True):
        for key, value in group.items():
            if isinstance(value, Tensor) and key in saved:
                group[key] = _with(value, member, saved[key])
            elif isinstance(value, tuple) and key == "betas" and key in saved:
                group[key] = tuple(_with(row, member, beta) for row, beta in zip(value, saved[key], strict=True))
    return in_place


def write_states(optimizer: Stacked, member: int, states: Mapping[int, Mapping[str, Any]]) -> bool:
    """Load the states of a member's parameters; a parameter without one is reset to before its first step.

    Returns:
        Whether all states are still the same tensors. A shared state becomes separate if the member has not taken the
        same number of steps for all parameters.
    """
    in_place = True
    written: dict[int, tuple[Tensor, Tensor]] = {}
    for index, (group, param) in enumerate(_params(optimizer)):
        saved = {name: value for name, value in states.get(index, {}).items() if value is not None}
        if not saved and not optimizer.state.get(param):
            continue
        fresh = optimizer.new_state(group, param)
        state = optimizer.state[param] = optimizer.state.get(param) or optimizer.new_state(group, param)
        if saved:
            saved["step"] = optimizer.steps_of(saved)
        for name, new in fresh.items():
            value = torch.as_tensor(saved.get(name, new[member]))
            if value.shape != new.shape[1:]:
                raise ValueError(
                    f"{name} has the shape {list(value.shape)}, but its parameter has {list(new.shape[1:])}"
                )
            shared = state[name]
            if name in optimizer.clock:  # shared with other parameters so far
                dtype = torch.promote_types(shared.dtype, value.dtype) if name != "step" else shared.dtype
                _, before = written.setdefault(id(shared), (shared, value))
                if dtype != shared.dtype or not torch.equal(before.to(value), value):
                    state[name], in_place = shared.to(dtype, copy=True), False
            state[name][member].copy_(value)
    return in_place


def _params(optimizer: Stacked) -> Iterator[tuple[dict[str, Any], Tensor]]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            yield group, param


def _number(value: Any, member: int) -> Any:
    if isinstance(value, Tensor):
        return value[member].item()
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return tuple(row[member].item() for row in value)
    return value


def _with(row: Tensor, member: int, value: float) -> Tensor:
    row = row.clone()
    row[member] = float(value)
    return row
