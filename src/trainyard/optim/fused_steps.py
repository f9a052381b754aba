"""Fused SGD and Adagrad that support late and sparse gradients, as torch's default steps do.

torch's fused steps support fewer cases than its default ones. The step of SGD fails if some parameters of a group have
a momentum and others receive their first gradient; neither step supports sparse gradients. Both cases appear at the
first gradient of a parameter, so these classes check only first gradients.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainyard._torch_internals import unwrapped
from trainyard.errors import ConfigError

log = logging.getLogger(__name__)

_Waiting = list[tuple[dict[str, Any], Tensor]]


class _FirstGradients(Optimizer):
    """A fused optimizer of torch that checks the first gradient of each parameter."""

    torch_class: type[Optimizer]
    """Torch's class."""
    _own_step: Callable[..., Any] | None = None
    _known: tuple[Any, ...] = ()
    _waiting: _Waiting = []  # noqa: RUF012 - replaced, never changed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; `closure`, if given, is called first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        known = (self.state, *[(len(group["params"]), group.get("momentum") == 0) for group in self.param_groups])
        if len(known) != len(self._known) or known[0] is not self._known[0] or known[1:] != self._known[1:]:
            self._known = known
            self._waiting = [(group, param) for group in self.param_groups for param in group["params"]]
        if self._waiting:
            first = [each for each in self._waiting if each[1].grad is not None]
            if first:
                self._waiting = [each for each in self._waiting if each[1].grad is None]
                self._prepare(first)
        if self._own_step is None:
            self._own_step = unwrapped(self.torch_class.step)  # the wrapper imports torch._dynamo
        self._own_step(self)
        return loss

    def _prepare(self, first: _Waiting) -> None:
        """Prepare the step for parameters that have their first gradient, or the first since a state was loaded."""
        if self.defaults["fused"] and any(param.grad is not None and param.grad.is_sparse for _, param in first):
            if getattr(self, "found_inf", None) is not None:  # GradScaler has left its part to the fused step
                raise ConfigError("fused", True, "false, because the gradients are sparse and precision is fp16")
            log.warning("%s runs without fused=True, which does not support sparse gradients.", type(self).__name__)
            for numbers in (self.defaults, *self.param_groups):
                numbers["fused"] = False
            self.__dict__.pop("_step_supports_amp_scaling", None)


class SGD(_FirstGradients, torch.optim.SGD):
    """`torch.optim.SGD` for `fused=True`, without a dampening; see the module."""

    torch_class = torch.optim.SGD

    def _prepare(self, first: _Waiting) -> None:
        super()._prepare(first)
        for group, param in first:
            if group["fused"] and group["momentum"] != 0 and self.state[param].get("momentum_buffer") is None:
                # From zeros, momentum * buffer + gradient is the gradient: what torch's own step begins with.
                self.state[param]["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)


class Adagrad(_FirstGradients, torch.optim.Adagrad):
    """`torch.optim.Adagrad` for `fused=True`; see the module."""

    torch_class = torch.optim.Adagrad


SUBSTITUTES: dict[Any, type[Optimizer]] = {torch.optim.SGD: SGD, torch.optim.Adagrad: Adagrad}
"""Classes of torch, each with the class that replaces it if `fused=True`."""
