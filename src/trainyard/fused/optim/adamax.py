"""Stacked Adamax."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.bucket import MemberSlice, Tensors
from trainyard.fused.optim.optimizer import Columns, Group, StackedOptimizer
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters


class StackedAdamax(StackedOptimizer):
    """`torch.optim.Adamax`."""

    keys: ClassVar = ("lr", "betas", "eps", "weight_decay")
    shaping: ClassVar = ("maximize",)

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        states = {name: torch.zeros_like(param.detach()) for name in ("exp_avg", "exp_inf")}
        return super().new_state(group, param) | states

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        values = numbers.device
        columns = {"weight1": 1 - values["beta1"], "beta2": values["beta2"], "eps": values["eps"]}
        return super()._fixed(group, numbers) | columns

    def _clocked(self, group: Group, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        values = numbers.device
        return {"over": (values["beta1"] ** clock["step"] - 1) / values["lr"]}

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        averages, norms = block.state("exp_avg"), block.state("exp_inf")
        foreach.lerp_(averages, grads, block.column("weight1"))
        foreach.mul_(norms, block.column("beta2"))
        sizes = foreach.abs(grads)
        foreach.add_(sizes, block.column("eps"))
        foreach.maximum_(norms, sizes)
        foreach.addcdiv_(block.params, averages, foreach.mul(norms, block.column("over")))
