"""Stacked NAdam."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.bucket import MemberSlice, Tensors
from trainyard.fused.optim.member_state import scalar_dtype
from trainyard.fused.optim.optimizer import Columns, Group, StackedOptimizer
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters


class StackedNAdam(StackedOptimizer):
    """`torch.optim.NAdam`. `mu_product` has the same precision as in torch."""

    keys: ClassVar = ("lr", "betas", "eps", "weight_decay", "momentum_decay")
    clock: ClassVar = ("step", "mu_product")
    shaping: ClassVar = ("maximize", "decoupled_weight_decay")

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        product = torch.ones(self.members, dtype=scalar_dtype(), device=param.device)
        averages = {name: torch.zeros_like(param.detach()) for name in ("exp_avg", "exp_avg_sq")}
        return super().new_state(group, param) | {"mu_product": product} | averages

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        values = numbers.device
        return super()._fixed(group, numbers) | {"weight1": 1 - values["beta1"], "weight2": 1 - values["beta2"]}

    def _clocked(self, group: Group, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        values, step, product = numbers.device, clock["step"], clock["mu_product"]
        mu = values["beta1"] * (1 - 0.5 * 0.96 ** (step * values["momentum_decay"]))
        mu_next = values["beta1"] * (1 - 0.5 * 0.96 ** ((step + 1) * values["momentum_decay"]))
        product.mul_(mu.to(product.dtype))
        passed = product.double()
        scale = (1 - values["beta2"] ** step).sqrt_()  # as in StackedAdam
        rate = -values["lr"] * scale
        return {
            "by_grad": rate * (1 - mu) / (1 - passed),
            "by_average": rate * mu_next / (1 - passed * mu_next),
            "eps": values["eps"] * scale,
        }

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        averages, squares = block.state("exp_avg"), block.state("exp_avg_sq")
        foreach.lerp_(averages, grads, block.column("weight1"))
        foreach.lerp_(squares, foreach.mul(grads, grads), block.column("weight2"))
        denominators = foreach.sqrt(squares)
        foreach.add_(denominators, block.column("eps"))
        updates = foreach.mul(grads, block.column("by_grad"))
        foreach.addcmul_(updates, averages, block.column("by_average"))
        foreach.addcdiv_(block.params, updates, denominators)
