"""Schedulers of torch that fall to a floor: a number, or a fraction of each parameter group's own learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from trainyard.checks import is_number


class CosineAnnealingLR(lr_scheduler.CosineAnnealingLR):
    """`torch.optim.lr_scheduler.CosineAnnealingLR`, with a minimum that can be a fraction of the learning rate.

    Args:
        optimizer: the optimizer whose learning rates are scheduled.
        T_max: the number of steps from the learning rate to the minimum.
        eta_min: the minimum for every group.
        eta_min_ratio: the minimum for each group, as a fraction of its own learning rate, instead of `eta_min`.
        last_epoch: as in torch.

    Raises:
        ValueError: `eta_min_ratio` is not a number in [0, 1], or `eta_min` is given too.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,  # noqa: N803 - torch's name
        eta_min: float = 0.0,
        eta_min_ratio: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        _check(eta_min, eta_min_ratio)
        self.eta_min_ratio = eta_min_ratio
        super().__init__(optimizer, T_max, eta_min, last_epoch)

    def get_lr(self) -> list[Any]:
        if self.eta_min_ratio is None:
            return super().get_lr()
        groups, step, half = self.optimizer.param_groups, self.last_epoch, self.T_max
        if step == 0:
            return [group["lr"] for group in groups]
        if (step - 1 - half) % (2 * half) == 0:  # at the floor, which a factor cannot leave
            rise = (1 - self.eta_min_ratio) * (1 - math.cos(math.pi / half)) / 2
            return [group["lr"] + base * rise for group, base in zip(groups, self.base_lrs, strict=True)]
        factor = (1 + math.cos(math.pi * step / half)) / (1 + math.cos(math.pi * (step - 1) / half))
        return _lowered(groups, [base * self.eta_min_ratio for base in self.base_lrs], factor)


class PolynomialLR(lr_scheduler.PolynomialLR):
    """`torch.optim.lr_scheduler.PolynomialLR` with a minimum: MMEngine's `PolyLR`.

    Args:
        optimizer: the optimizer whose learning rates are scheduled.
        total_iters: the number of steps from the learning rate to the minimum.
        power: the exponent of the remaining fraction of the steps.
        eta_min: the minimum for every group.
        eta_min_ratio: the minimum for each group, as a fraction of its own learning rate, instead of `eta_min`.
        last_epoch: as in torch.

    Raises:
        ValueError: `eta_min_ratio` is not a number in [0, 1], or `eta_min` is given too.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        eta_min: float = 0.0,
        eta_min_ratio: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        _check(eta_min, eta_min_ratio)
        self.eta_min, self.eta_min_ratio = eta_min, eta_min_ratio
        super().__init__(optimizer, total_iters, power, last_epoch)

    def get_lr(self) -> list[Any]:
        if self.eta_min_ratio is None and self.eta_min == 0:
            return super().get_lr()
        groups, step, total = self.optimizer.param_groups, self.last_epoch, self.total_iters
        if step == 0 or step > total:
            return [group["lr"] for group in groups]
        share = self.eta_min_ratio
        floors = [self.eta_min if share is None else base * share for base in self.base_lrs]
        return _lowered(groups, floors, (1 - 1 / (total - step + 1)) ** self.power)


def _lowered(groups: list[dict[str, Any]], floors: list[Any], factor: float) -> list[Any]:
    """Return the learning rates with their distance from the floor multiplied by `factor`."""
    return [(group["lr"] - floor) * factor + floor for group, floor in zip(groups, floors, strict=True)]


def _check(eta_min: Any, share: Any) -> None:
    if share is None:
        return
    if not is_number(share, at_least=0, at_most=1):
        raise ValueError(f"eta_min_ratio must be a number in [0, 1], not {share!r}")
    if eta_min != 0:
        raise ValueError("eta_min_ratio replaces eta_min, which must then be 0")
