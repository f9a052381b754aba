"""Stacked RMSprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.bucket import MemberSlice, Tensors
from trainyard.fused.optim.optimizer import Columns, Group, StackedOptimizer
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters


class StackedRMSprop(StackedOptimizer):
    """`torch.optim.RMSprop`. A member without momentum is updated with the others: its buffer is one step's update."""

    keys: ClassVar = ("lr", "alpha", "eps", "weight_decay", "momentum")
    shaping: ClassVar = ("centered", "maximize")

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        names = ["square_avg"]
        names += ["momentum_buffer"] if group["momentum"].any() else []
        names += ["grad_avg"] if group["centered"] else []
        return super().new_state(group, param) | {name: torch.zeros_like(param.detach()) for name in names}

    def has(self, group: Group, state: Mapping[str, Tensor], member: int) -> list[str]:
        names = super().has(group, state, member)
        return [name for name in names if name != "momentum_buffer" or group["momentum"][member] > 0]

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        values = numbers.device
        columns = {"weight": 1 - values["alpha"], "eps": values["eps"], "momentum": values["momentum"]}
        return super()._fixed(group, numbers) | columns | {"rate": -values["lr"], "over": -1 / values["lr"]}

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        squares, weight = block.state("square_avg"), block.column("weight")
        foreach.lerp_(squares, foreach.mul(grads, grads), weight)
        if group["centered"]:
            averages = block.state("grad_avg")
            foreach.lerp_(averages, grads, weight)
            denominators = foreach.addcmul(squares, averages, averages, value=-1)
            foreach.sqrt_(denominators)
        else:
            denominators = foreach.sqrt(squares)
        foreach.add_(denominators, block.column("eps"))
        if numbers.some("momentum"):
            buffers = block.state("momentum_buffer")
            foreach.mul_(buffers, block.column("momentum"))
            foreach.addcdiv_(buffers, grads, denominators)
            foreach.addcmul_(block.params, buffers, block.column("rate"))
        else:
            foreach.mul_(denominators, block.column("over"))
            foreach.addcdiv_(block.params, grads, denominators)
