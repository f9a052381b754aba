"""Stacked Lion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.bucket import MemberSlice, Tensors
from trainyard.fused.optim.optimizer import Columns, Group, StackedOptimizer
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters


class StackedLion(StackedOptimizer):
    """`trainyard.optim.Lion`. `step` only distinguishes members with a state from those without one."""

    keys: ClassVar = ("lr", "betas", "weight_decay")
    shaping: ClassVar = ("maximize",)

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        return super().new_state(group, param) | {"exp_avg": torch.zeros_like(param.detach())}

    def has(self, group: Group, state: Mapping[str, Tensor], member: int) -> list[str]:
        return ["exp_avg"] if state["step"][member] > 0 else []

    def steps_of(self, saved: Mapping[str, Any]) -> Tensor | float:
        return 1.0

    def _decoupled(self, group: Group) -> bool:
        return True

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        values = numbers.device
        weights = {"weight1": 1 - values["beta1"], "weight2": 1 - values["beta2"]}
        return super()._fixed(group, numbers) | weights | {"rate": -values["lr"]}

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        averages = block.state("exp_avg")
        updates = foreach.lerp(averages, grads, block.column("weight1"))
        foreach.sign_(updates)
        foreach.addcmul_(block.params, updates, block.column("rate"))
        foreach.lerp_(averages, grads, block.column("weight2"))
