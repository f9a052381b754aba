"""Optimizers whose trained weights differ from the weights to evaluate, such as schedule-free ones: `train()` and
`eval()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner


def switches(optimizer: Any) -> bool:
    """Return whether an optimizer has `train()` and `eval()`, which change the weights in place."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def end_training(optimizer: Any) -> None:
    """Set the parameters to their values for evaluation, if the optimizer switches."""
    if switches(optimizer):
        optimizer.eval()


@contextmanager
def evaluated(optimizer: Any) -> Iterator[None]:
    """Inside the block, give the parameters their values for evaluation, if the optimizer switches; then restore the
    previous values.

    `train()` would restore them only up to rounding; a copy restores them bit for bit.
    """
    if not switches(optimizer):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


@contextmanager
def evaluated_in_training(runner: Runner) -> Iterator[None]:
    """Do the same for a validation during a training; only the model itself may be evaluated."""
    if not runner.training or runner.stacked:
        yield
        return
    with evaluated(runner.optimizer):
        yield
