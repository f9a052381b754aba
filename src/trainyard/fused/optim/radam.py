"""Stacked RAdam."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.bucket import MemberSlice, Tensors
from trainyard.fused.optim.optimizer import Columns, Group, StackedOptimizer
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters


class StackedRAdam(StackedOptimizer):
    """`torch.optim.RAdam`. Whether a step is rectified depends on `beta2` and is decided for each member."""

    keys: ClassVar = ("lr", "betas", "eps", "weight_decay")
    shaping: ClassVar = ("maximize", "decoupled_weight_decay")

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        averages = {name: torch.zeros_like(param.detach()) for name in ("exp_avg", "exp_avg_sq")}
        return super().new_state(group, param) | averages

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        values = numbers.device
        weights = {"weight1": 1 - values["beta1"], "weight2": 1 - values["beta2"]}
        return super()._fixed(group, numbers) | weights | {"eps": values["eps"]}

    def _clocked(self, group: Group, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        values, step = numbers.device, clock["step"]
        decayed = values["beta2"] ** step
        correction2 = 1 - decayed
        rate = -values["lr"] / (1 - values["beta1"] ** step)
        longest = 2 / (1 - values["beta2"]) - 1
        length = longest - 2 * step * decayed / correction2
        rectified = length > 5
        square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return {
            "rectified": torch.where(rectified, rate * (square * correction2).sqrt(), 0.0),
            "plain": torch.where(rectified, 0.0, rate),
        }

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        averages, squares = block.state("exp_avg"), block.state("exp_avg_sq")
        foreach.lerp_(averages, grads, block.column("weight1"))
        foreach.lerp_(squares, foreach.mul(grads, grads), block.column("weight2"))
        factors = foreach.sqrt(squares)
        foreach.add_(factors, block.column("eps"))
        foreach.reciprocal_(factors)
        foreach.mul_(factors, block.column("rectified"))
        foreach.add_(factors, block.column("plain"))
        foreach.addcmul_(block.params, averages, factors)
