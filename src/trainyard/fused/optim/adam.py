"""Stacked Adam and AdamW."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.bucket import KernelSlice, MemberSlice, Tensors
from trainyard.fused.optim.kernel import KernelOptimizer
from trainyard.fused.optim.optimizer import Columns, Group
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters


class StackedAdam(KernelOptimizer):
    """`torch.optim.Adam` and `torch.optim.AdamW`, which differ in the flag `decoupled_weight_decay`.

    With s = sqrt(1 - beta2^t), the update lr / (1 - beta1^t) * m / (sqrt(v) / s + eps) is computed as
    lr * s / (1 - beta1^t) * m / (sqrt(v) + eps * s), which saves one pass over the parameters.
    """

    keys: ClassVar = ("lr", "betas", "eps", "weight_decay")
    shaping: ClassVar = ("amsgrad", "maximize", "decoupled_weight_decay")
    kernels: ClassVar = ("adam", "adamw")
    shared: ClassVar = ("beta1", "beta2", "eps")
    kernels_of: ClassVar = "Adam"

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        return super().new_state(group, param) | {name: torch.zeros_like(param.detach()) for name in names}

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        values = numbers.device
        weights = {"weight1": 1 - values["beta1"], "weight2": 1 - values["beta2"]}
        return super()._fixed(group, numbers) | weights | {"rate": values["lr"]}

    def _clocked(self, group: Group, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        values = numbers.device
        correction1, correction2 = 1 - numbers.betas ** clock["step"]
        scale = correction2.sqrt_()
        return {"eps": values["eps"] * scale, "over": correction1 / (values["lr"] * scale)}

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        exp_avgs, squares = block.state("exp_avg"), block.state("exp_avg_sq")
        foreach.lerp_(exp_avgs, grads, block.column("weight1"))
        foreach.lerp_(squares, foreach.mul(grads, grads), block.column("weight2"))
        if group["amsgrad"]:
            foreach.maximum_(block.state("max_exp_avg_sq"), squares)
            squares = block.state("max_exp_avg_sq")
        denominators = foreach.sqrt(squares)
        foreach.add_(denominators, block.column("eps"))
        foreach.mul_(denominators, block.column("over"))
        foreach.addcdiv_(block.params, exp_avgs, denominators, value=-1)

    def _whole_kernel(self, group: Group, numbers: StackedHyperparameters, run: KernelSlice, grads: Tensors) -> None:
        lr, decay = (numbers.of(name, run.rows.start) for name in self.scaling)
        self._call(group, run.params, run, grads, lr, decay, maximize=group["maximize"])

    def _kernel(self, group: Group, params: list[Tensor], run: KernelSlice, grads: Tensors) -> None:
        self._call(group, params, run, grads, 1.0, 0.0, maximize=False)

    def _call(
        self,
        group: Group,
        params: list[Tensor],
        run: KernelSlice,
        grads: Tensors,
        lr: float,
        weight_decay: float,
        *,
        maximize: bool,
    ) -> None:
        self._kernels["adamw" if self._decoupled(group) else "adam"](
            params,
            grads,
            run.state("exp_avg"),
            run.state("exp_avg_sq"),
            run.state("max_exp_avg_sq") if group["amsgrad"] else [],
            run.steps,
            amsgrad=group["amsgrad"],
            lr=lr,
            beta1=run.numbers["beta1"],
            beta2=run.numbers["beta2"],
            weight_decay=weight_decay,
            eps=run.numbers["eps"],
            maximize=maximize,
        )
