"""Optimizers that train other weights than those to evaluate, such as schedule-free ones: `train()` and `eval()`."""

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
    """Leave the parameters at their values for evaluation, if the optimizer switches."""
    if switches(optimizer):
        optimizer.eval()


@contextmanager
def evaluated(optimizer: Any) -> Iterator[None]:
    """Give the parameters their values for evaluation inside the block, if the optimizer switches; then those before.

    `train()` would bring them back up to rounding; a copy does so to the bit.
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
    """Do the same for a validation in the course of a training; the model alone may be what is evaluated."""
    if not runner.training or runner.stacked:
        yield
        return
    with evaluated(runner.optimizer):
        yield
