"""Fused steps of `torch.optim.Adam` and `AdamW` that keep the kernel's arguments.

`Adam.step` spends half of its time on a small model before its kernel starts. It looks up the state of every parameter,
sorts all tensors by device and dtype, and counts the steps of each parameter separately. None of this changes between
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from trainyard._torch_internals import fused_kernel

State = dict[str, Any]

_NONE = repeat(None)


@dataclass
class _KeptGroup:
    """The cached parts of a parameter group: its parameters, their states, and their step counts in one tensor."""

    group: dict[str, Any]
    params: list[Tensor]
    states: list[State]
    counts: Tensor
    steps: list[Tensor]
    kernel: Callable[..., None]

    def stands(self) -> bool:
        """Return whether the cached parts are still those of the group."""
        params = self.group["params"]
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and all(map(is_, [state["step"] for state in self.states], self.steps))
            and bool(self.group["fused"])
        )

    def step(self, grads: list[Tensor]) -> None:
        group, states = self.group, self.states
        amsgrad = group["amsgrad"]
        beta1, beta2 = group["betas"]
        self.counts.add_(1)
        self.kernel(
            self.params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if amsgrad else [],
            self.steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=amsgrad,
            maximize=group["maximize"],
        )


class FusedAdam:
    """A faster `optimizer.step()` with bitwise equal results; it calls the original step if it cannot guarantee this.

    The first step, the first step after a state was loaded, and every step in which a parameter has no gradient call
    the original. The state stays in place; the step count of each parameter becomes a view into the counts of its
    group.

    Args:
        optimizer: an optimizer for which `takes` is true.
        step: the original step.
    """

    def __init__(self, optimizer: Optimizer, step: Callable[[], Any]) -> None:
        self._optimizer = optimizer
        self._own_step = step
        self._states: list[State] = []
        self._kept: list[_KeptGroup] = []

    @staticmethod
    def takes(optimizer: Optimizer) -> bool:
        """Return whether this is torch's own Adam or AdamW, fused, and torch has the kernel."""
        groups = optimizer.param_groups
        return type(optimizer) in (Adam, AdamW) and all(group["fused"] and _kernel(group) for group in groups)

    def __call__(self) -> None:
        if not self._stands():
            self._own_step()
            self._adopt()
            return
        grads = [[param.grad for param in kept.params] for kept in self._kept]
        if any(any(map(is_, own, _NONE)) for own in grads):
            self._own_step()
            return
        for kept, own in zip(self._kept, grads, strict=True):
            kept.step(own)  # type: ignore[arg-type] # None of them is None.

    def _stands(self) -> bool:
        return (
            len(self._kept) == len(self._optimizer.param_groups)
            and self._same_states()
            and all(map(_KeptGroup.stands, self._kept))
        )

    def _same_states(self) -> bool:
        """Return whether the optimizer still has the states that were cached."""
        state = self._optimizer.state
        return len(state) == len(self._states) and all(map(is_, state.values(), self._states))

    def _adopt(self) -> None:
        """Cache the parts of the groups and their states; after a failure, only when the state has changed."""
        if not self._kept and self._same_states():
            return
        state = self._optimizer.state
        kept = [_kept(group, state) for group in self._optimizer.param_groups]
        self._kept = [] if None in kept else [group for group in kept if group is not None]
        self._states = list(state.values())


def _kept(group: dict[str, Any], state: dict[Tensor, State]) -> _KeptGroup | None:
    """Return the cached group; None if a parameter has had no step, or devices, dtypes or classes differ."""
    params = list(group["params"])
    kinds = {(type(param), param.device, param.dtype) for param in params}
    if len(kinds) != 1 or next(iter(kinds))[0] not in (nn.Parameter, Tensor) or not all(map(state.get, params)):
        return None
    states = [state[param] for param in params]
    if not all(own["step"].device == param.device for own, param in zip(states, params, strict=True)):
        return None
    counts = torch.stack([own["step"] for own in states])
    steps = list(counts.unbind())
    for own, step in zip(states, steps, strict=True):
        own["step"] = step
    kernel = _kernel(group)
    return None if kernel is None else _KeptGroup(group, params, states, counts, steps, kernel)


def _kernel(group: dict[str, Any]) -> Callable[..., None] | None:
    return fused_kernel("adamw" if group["decoupled_weight_decay"] else "adam")
