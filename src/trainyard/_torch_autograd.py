"""Private entry of torch's autograd engine: a backward pass without the checks of `Tensor.backward`.

It is listed and switched in `_fast_paths`, like those of `_torch_internals`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainyard._fast_paths import Internal, register, usable

_NAME = "torch.autograd.Variable._execution_engine"

Backward = Callable[[Tensor, Tensor], None]
"""Computes the gradients of a tensor for all leaves of its graph. Its second argument is the gradient of the tensor,
of its shape, dtype and device."""


def backward_function() -> Backward:
    """Return a function that computes what `tensor.backward(gradient)` does.

    For plain tensors on the CPU, the engine is called directly. Other tensors use `Tensor.backward`, which dispatches
    on subclasses and gives the device threads of the engine their context.
    """
    return _direct(_engine().run_backward) if usable(_NAME) else _public


def _public(tensor: Tensor, gradient: Tensor) -> None:
    tensor.backward(gradient)  # type: ignore[no-untyped-call]


def _direct(run: Callable[..., object]) -> Backward:
    def backward(tensor: Tensor, gradient: Tensor) -> None:
        if type(tensor) is Tensor and tensor.is_cpu:
            run((tensor,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        else:
            _public(tensor, gradient)

    return backward


def _engine() -> Any:
    return torch.autograd.Variable._execution_engine


def _check() -> bool:
    leaf = torch.tensor([2.0, 3.0], requires_grad=True)
    _direct(_engine().run_backward)(leaf.square(), torch.tensor([1.0, 0.5]))
    return leaf.grad is not None and leaf.grad.tolist() == [4.0, 3.0]


register(
    (
        Internal(
            _NAME,
            ("step.precision",),
            "a backward pass without the checks of Tensor.backward; saves a tenth of the step time of a small model",
            "Tensor.backward",
            _check,
        ),
    ),
    when_switched=lambda: None,
)
