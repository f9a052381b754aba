"""Stacked Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.bucket import KernelSlice, MemberSlice, Tensors
from trainyard.fused.optim.kernel import KernelOptimizer
from trainyard.fused.optim.optimizer import Columns, Group
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters


class StackedAdagrad(KernelOptimizer):
    """`torch.optim.Adagrad`, whose state exists before the first step."""

    keys: ClassVar = ("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value")
    shaping: ClassVar = ("maximize",)
    kernels: ClassVar = ("adagrad",)
    shared: ClassVar = ("eps",)
    scaling: ClassVar = ("lr", "weight_decay", "lr_decay")

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        start = group["initial_accumulator_value"].to(param.device, param.dtype)
        total = torch.empty_like(param.detach()).copy_(start.view(-1, *[1] * (param.dim() - 1)))
        return super().new_state(group, param) | {"sum": total}

    def has(self, group: Group, state: Mapping[str, Tensor], member: int) -> list[str]:
        return list(state)

    def _rates(self, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        values = numbers.device
        return {"rate": values["lr"] / (1 + (clock["step"] - 1) * values["lr_decay"])}

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        return super()._fixed(group, numbers) | {"eps": numbers.device["eps"]}

    def _clocked(self, group: Group, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        return {"over": -1 / self._rates(numbers, clock)["rate"]}

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        sums = block.state("sum")
        foreach.addcmul_(sums, grads, grads)
        denominators = foreach.sqrt(sums)
        foreach.add_(denominators, block.column("eps"))
        foreach.mul_(denominators, block.column("over"))
        foreach.addcdiv_(block.params, grads, denominators)

    def _whole_kernel(self, group: Group, numbers: StackedHyperparameters, run: KernelSlice, grads: Tensors) -> None:
        lr, weight_decay, lr_decay = (numbers.of(name, run.rows.start) for name in self.scaling)
        self._call(run.params, run, grads, lr, weight_decay, lr_decay, maximize=group["maximize"])

    def _kernel(self, group: Group, params: list[Tensor], run: KernelSlice, grads: Tensors) -> None:
        self._call(params, run, grads, 1.0, 0.0, 0.0, maximize=False)

    def _call(
        self,
        params: list[Tensor],
        run: KernelSlice,
        grads: Tensors,
        lr: float,
        weight_decay: float,
        lr_decay: float,
        *,
        maximize: bool,
    ) -> None:
        self._kernels["adagrad"](
            params,
            grads,
            run.state("sum"),
            run.steps,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            eps=run.numbers["eps"],
            maximize=maximize,
        )
