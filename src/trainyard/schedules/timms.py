"""Schedulers of timm, which are not `LRScheduler`s: they compute a value from a given position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def is_timms(make: Any) -> bool:
    """Return whether this is a class of `timm.scheduler`, which is recognized by its methods."""
    return isinstance(make, type) and all(hasattr(make, name) for name in ("step", "step_update", "update_groups"))


def timms(make: Callable[..., Any], optimizer: Optimizer, **keywords: Any) -> LRScheduler:
    """Return a scheduler of timm as an `LRScheduler` that is stepped once after each unit."""
    return _Timms(optimizer, make(optimizer, **keywords))


class _Timms(LRScheduler):
    def __init__(self, optimizer: Optimizer, own: Any) -> None:
        self.own = own
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Any]:
        """Return the learning rates at the position: an epoch, or an update with `t_in_epochs: false`."""
        (self.own.step if self.own.t_in_epochs else self.own.step_update)(self.last_epoch)
        return [group["lr"] for group in self.optimizer.param_groups]
