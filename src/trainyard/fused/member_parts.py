"""One member's part of what a fused group holds in stacks, in the form that a solo run's checkpoint has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainyard.fused.optim import StackedOptimizer
from trainyard.runner.dispatch import Dispatch
from trainyard.step.step import AccumulatedStep, Step


class MemberOptimizer:
    """A member's optimiser, as far as a schedule and a checkpoint read it.

    Attributes:
        kind: the name of the class that it would be alone.
    """

    def __init__(self, stacked: StackedOptimizer, index: int, kind: str) -> None:
        self._stacked = stacked
        self._index = index
        self.kind = kind
        self.defaults = stacked.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._stacked.member_param_groups(self._index)

    def state_dict(self) -> dict[str, Any]:
        return self._stacked.member_state_dict(self._index)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stacked.load_member_state_dict(self._index, state)


class MemberStep:
    """A member's part of the step: its scale, and the gradients that it has gathered."""

    def __init__(self, step: Step, index: int) -> None:
        self._step = step
        self._index = index

    def state_dict(self) -> dict[str, Any]:
        precision = self._step.precision
        of_member = getattr(precision, "member_state_dict", None)
        state: dict[str, Any] = {"precision": of_member(self._index) if of_member else precision.state_dict()}
        if isinstance(self._step, AccumulatedStep):
            gathered = [parameter.grad for parameter in self._step.parameters]
            pending = any(gradient is not None for gradient in gathered)
            own = [None if gradient is None else gradient[self._index] for gradient in gathered]
            state["gradients"] = own if pending else None
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        precision = self._step.precision
        of_member = getattr(precision, "load_member_state_dict", None)
        if of_member:
            of_member(self._index, state["precision"])
        else:
            precision.load_state_dict(state["precision"])
        for parameter, gradient in zip(self._step.parameters, state.get("gradients") or [], strict=False):
            if gradient is not None:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad[self._index] = gradient.to(parameter.device)


class MemberDispatch:
    """The group's hooks, with the state that they hold for one member."""

    def __init__(self, dispatch: Dispatch, index: int) -> None:
        self._dispatch = dispatch
        self._index = index
        self.hooks = dispatch.hooks

    def call(self, stage: str, *args: Any, **kwargs: Any) -> None:
        self._dispatch.call(stage, *args, **kwargs)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return self._dispatch.state_dict(self._index)

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        self._dispatch.load_state_dict(states, self._index)
