"""Stacked SGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.bucket import MemberSlice, Tensors
from trainyard.fused.optim.optimizer import Columns, Group, StackedOptimizer
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters


class StackedSGD(StackedOptimizer):
    """`torch.optim.SGD`. Members with and without momentum are updated together.

    The update is `by_grad * grad + by_buffer * buffer`. Without momentum, `by_buffer` is 0; with plain momentum,
    `by_grad` is 0; with Nesterov momentum, neither is 0. `step` counts the steps with momentum, because the first of
    them is not dampened.
    """

    keys: ClassVar = ("lr", "momentum", "dampening", "weight_decay")
    shaping: ClassVar = ("nesterov", "maximize")
    kernels_of: ClassVar = "SGD"

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        return super().new_state(group, param) | {"momentum_buffer": torch.zeros_like(param.detach())}

    def has(self, group: Group, state: Mapping[str, Tensor], member: int) -> list[str]:
        return ["momentum_buffer"] if state["step"][member] > 0 else []

    def steps_of(self, saved: Mapping[str, Any]) -> Tensor | float:
        return 1.0 if "momentum_buffer" in saved else 0.0

    def _tick(self, numbers: StackedHyperparameters) -> Tensor | float:
        if not numbers.some("momentum"):
            return 0.0
        return 1.0 if numbers.every("momentum") else numbers.device["momentum"] != 0

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        lr, momentum = -numbers.device["lr"], numbers.device["momentum"]
        if not numbers.some("momentum"):
            return super()._fixed(group, numbers) | {"by_grad": lr}
        moving = momentum != 0
        columns = {
            "by_grad": lr if group["nesterov"] else lr * ~moving,
            "by_buffer": lr * momentum if group["nesterov"] else lr * moving,
            "kept": torch.where(moving, momentum, 1.0),  # a member whose momentum became 0 keeps its buffer
        }
        return super()._fixed(group, numbers) | columns

    def _clocked(self, group: Group, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        if not self._weighs(numbers):
            return {}
        moving, later = numbers.device["momentum"] != 0, clock["step"] > 1
        return {"added": moving * (1 - numbers.device["dampening"] * later)}

    def _weighs(self, numbers: StackedHyperparameters) -> bool:
        """Return whether some gradients go into the buffers with a weight other than 1."""
        return numbers.some("momentum") and (numbers.some("dampening") or not numbers.every("momentum"))

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        if numbers.some("momentum"):
            buffers = block.state("momentum_buffer")
            foreach.mul_(buffers, block.column("kept"))
            if self._weighs(numbers):
                foreach.addcmul_(buffers, grads, block.column("added"))
            else:
                foreach.add_(buffers, grads)
            foreach.addcmul_(block.params, buffers, block.column("by_buffer"))
            if numbers.every("momentum") and not group["nesterov"]:
                return
        foreach.addcmul_(block.params, grads, block.column("by_grad"))
