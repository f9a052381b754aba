"""Base of the optimizer families for which torch has a fused kernel on the CPU."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from trainyard._torch_internals import Kernel, foreach, fused_kernel
from trainyard.fused.optim.bucket import KernelSlice, ParameterBucket, Tensors
from trainyard.fused.optim.optimizer import Columns, Group, StackedOptimizer
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters

ALONE = 2**15
"""Numbers in a member from which on the kernel is called for each member separately. For 256 MLPs of 51k parameters and
Adam, this takes 11 ms, and a common call 17 ms. At 26k, both take the same time; below, separate calls are slower."""


class KernelOptimizer(StackedOptimizer):
    """Optimizer that uses torch's fused CPU kernel: one call for the parameters of members that share some numbers.

    The kernel accepts one learning rate. If the members of a run have different ones, the kernel receives zeros as
    parameters and a learning rate of 1. It then computes the updates of the members, which are added with the learning
    rate of each member. For 64 MLPs of 9k parameters and Adam, this takes 0.3 ms; a call for each member takes 0.75 ms,
    and broadcast arithmetic 0.6 ms. Large members (`ALONE`) are updated one by one, like their own optimizers.

    In all other cases, `_update` is used: on CUDA, without the kernel, if small members have taken different numbers of
    steps or share too few numbers, or if others may take their rows.
    """

    kernels: ClassVar[tuple[Kernel, ...]]
    """Kernels that the family calls."""
    shared: ClassVar[tuple[str, ...]]
    """Names of the numbers that are equal for the members of a run."""
    scaling: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    """Names of the numbers that may differ within a run."""

    def __init__(self, groups: list[Group], members: int, defaults: dict[str, Any]) -> None:
        found = {name: fused_kernel(name) for name in self.kernels}
        self._kernels = {name: kernel for name, kernel in found.items() if kernel is not None}
        self._has_kernels = len(self._kernels) == len(self.kernels)
        super().__init__(groups, members, defaults)

    def _rates(self, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        """Return the column `rate`, the factor of the kernel's update; {} if `_fixed` has it."""
        return {}

    def _kernel(self, group: Group, params: list[Tensor], run: KernelSlice, grads: Tensors) -> None:
        """Step `params` at a learning rate of 1, without weight decay; `maximize` is in `grads` already."""
        raise NotImplementedError

    def _whole_kernel(self, group: Group, numbers: StackedHyperparameters, run: KernelSlice, grads: Tensors) -> None:
        """Step the parameters of a run whose members are equal in all numbers, as their own optimizers would."""
        raise NotImplementedError

    def _advance(self, group: Group, numbers: StackedHyperparameters, bucket: ParameterBucket) -> None:
        runs = self._runs(numbers, bucket)
        if not runs:
            super()._advance(group, numbers, bucket)
            return
        bucket.clock["step"].add_(1.0)
        bucket.fill(self._rates(numbers, bucket.clock))
        for run, grads in zip(runs, bucket.grads(runs), strict=True):
            if run.alike(numbers, self.scaling):
                self._whole_kernel(group, numbers, run, grads)
            else:
                updates = run.zeros()
                self._kernel(group, updates, run, self._decayed(group, numbers, run, grads))
                foreach.addcmul_(run.params, updates, run.column("rate"))

    def _runs(self, numbers: StackedHyperparameters, bucket: ParameterBucket) -> list[KernelSlice]:
        """Return the runs of a bucket; none if the kernel does not apply to it."""
        if not (bucket.on_cpu and bucket.row_wise and self._has_kernels):
            return []
        key = [numbers.host[name] for name in self.shared]
        if bucket.runs is None or any(a is not b for a, b in zip(key, bucket.runs[0], strict=True)):
            if bucket.numel >= ALONE:
                edges = [(member, member + 1) for member in range(bucket.members)]
            elif self.joinable:
                edges = []
            else:
                edges = numbers.runs(self.shared)
                steps = bucket.clock["step"]
                # A call costs as much as the broadcast arithmetic of 8 members.
                if len(edges) > max(1, bucket.members // 8) or bool((steps != steps[0]).any()):
                    edges = []
            pieces = [piece for start, stop in edges for piece in bucket.cut(start, stop)]
            runs = [KernelSlice(bucket, numbers, self.shared, start, stop) for start, stop in pieces]
            bucket.runs = (key, runs)
        return bucket.runs[1]
