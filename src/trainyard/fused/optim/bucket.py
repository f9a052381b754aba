"""Buckets: parameters that step together, cut into blocks of members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.fused.optim.one_pass import Launch
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters

Tensors = tuple[Tensor, ...] | list[Tensor]
"""Sequences of tensors that torch's `_foreach` functions accept."""

LIMIT = 2**18
"""Numbers in a block on the CPU. The temporaries of a block stay in the cache and in the allocator's pool: with blocks
of any size Adam's update of 256 MLPs of 9k parameters took 10 ms, with these 3.7 ms."""


class MemberSlice:
    """Rows of some members: the operand of one update. All lists are parallel to the bucket's parameters.

    Attributes:
        rows: the indices of the members.
        params: views `[members, *shape]` of the parameters, outside autograd.
    """

    def __init__(self, bucket: ParameterBucket, start: int, stop: int) -> None:
        self.rows = slice(start, stop)
        self.params = [param.detach()[self.rows] for param in bucket.params]
        self._bucket = bucket
        self._states: dict[str, list[Tensor]] = {}
        self._columns: dict[str, list[Tensor]] = {}

    def state(self, name: str) -> list[Tensor]:
        """Return views `[members, *shape]` of the state `name`."""
        if name not in self._states:
            self._states[name] = [state[name][self.rows] for state in self._bucket.states]
        return self._states[name]

    def column(self, name: str) -> list[Tensor]:
        """Return the column `name` of the bucket as `[members, 1, ...]`, to be broadcast over each parameter."""
        if name not in self._columns:
            column = self._bucket.columns[name][self.rows]
            self._columns[name] = [column.view(-1, *[1] * (param.dim() - 1)) for param in self.params]
        return self._columns[name]


class KernelSlice(MemberSlice):
    """Adjacent members with the same `shared` numbers, which one kernel call updates.

    Attributes:
        numbers: the shared numbers.
        steps: for each parameter, the count of its steps, a tensor of no dimension.
    """

    def __init__(
        self, bucket: ParameterBucket, numbers: StackedHyperparameters, shared: Sequence[str], start: int, stop: int
    ) -> None:
        super().__init__(bucket, start, stop)
        self.numbers = {name: numbers.of(name, start) for name in shared}
        self.steps = [bucket.clock["step"][start]] * len(self.params)
        self._zeros: list[Tensor] = []
        self._flat: Tensor | None = None
        self._seen: list[Tensor] = []
        self._alike = False

    def alike(self, numbers: StackedHyperparameters, names: Sequence[str]) -> bool:
        """Return whether the members are equal in `names` too."""
        if self.rows.stop - self.rows.start == 1:
            return True
        values = [numbers.host[name] for name in names]
        if len(values) != len(self._seen) or any(a is not b for a, b in zip(values, self._seen, strict=True)):
            self._seen = values
            self._alike = all(bool((value[self.rows] == value[self.rows.start]).all()) for value in values)
        return self._alike

    def zeros(self) -> list[Tensor]:
        """Return zeros laid out as each parameter; they are valid until another run of the bucket requests zeros."""
        if self._flat is None:
            sizes = [param.numel() for param in self.params]
            self._flat = self._bucket.scratch()[: sum(sizes)]
            cut = self._flat.split_with_sizes(sizes)
            self._zeros = [
                piece.as_strided(param.shape, param.stride()) for piece, param in zip(cut, self.params, strict=True)
            ]
        self._flat.zero_()
        return self._zeros


class ParameterBucket:
    """Parameters of one group and one dtype whose members have taken the same number of steps.

    Args:
        params: stacked parameters `[K, *shape]`.
        states: their states, laid out as they are; each holds the tensors of `clock`.
        clock: state that the parameters share: `step` `[K]`, and any other state that is a function of it.

    Attributes:
        numel: the numbers in the parameters of one member.
        size: the members in a block, at most.
        columns: factors `[K]` of the arithmetic, in the parameters' dtype.
        blocks: the members, cut to a size.
        runs: the shared numbers for which the runs were made, and the runs; None if they must be made.
        row_wise: whether the numbers of each member are contiguous in memory, in every parameter.
        launch: steps the bucket with kernels in one pass over memory; None if arithmetic on lists is used.
    """

    def __init__(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]], clock: dict[str, Tensor]) -> None:
        self.params = params
        self.states = states
        self.clock = clock
        self.columns: dict[str, Tensor] = {}
        self.members = clock["step"].numel()
        self.on_cpu = params[0].device.type == "cpu"
        self.numel = sum(param[0].numel() for param in params)
        self.size = min(self.members, max(1, LIMIT // max(1, self.numel))) if self.on_cpu else self.members
        self._scratch: Tensor | None = None
        self.runs: tuple[list[Tensor], list[KernelSlice]] | None = None
        self.row_wise = all(_is_row_wise(param) for param in params)
        self.launch: Launch | None = None
        self.blocks = [MemberSlice(self, start, stop) for start, stop in self.cut(0, self.members)]

    def cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the members from `start` to `stop` in pieces of at most `size`."""
        return list(pairwise([*range(start, stop, self.size), stop]))

    def scratch(self) -> Tensor:
        """Return a flat tensor with room for `size` members."""
        if self._scratch is None:
            self._scratch = self.params[0].new_empty(self.size * self.numel)
        return self._scratch

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Write columns `[K]`, cast to the parameters' dtype; their tensors stay the same objects."""
        known = [name for name in values if name in self.columns]
        if known:
            foreach.copy_([self.columns[name] for name in known], [values[name] for name in known])
        for name in values.keys() - self.columns.keys():
            self.columns[name] = values[name].to(self.params[0].dtype, copy=True)

    def whole_grads(self) -> list[Tensor]:
        """Return the gradients, laid out as their parameters."""
        return [laid_out_as(param, param.grad) for param in self.params if param.grad is not None]

    def grads(self, blocks: Sequence[MemberSlice] | Sequence[KernelSlice]) -> list[list[Tensor]]:
        """Return the gradients, laid out as their parameters and cut as `blocks` are."""
        whole = self.whole_grads()
        if len(blocks) == 1:
            return [whole]
        sizes = [block.rows.stop - block.rows.start for block in blocks]
        return [list(cut) for cut in zip(*[grad.split_with_sizes(sizes) for grad in whole], strict=True)]

    def snapshot(self) -> list[tuple[Tensor, Tensor]]:
        """Return every tensor that a step changes, with a copy of it."""
        states = [value for state in self.states for name, value in state.items() if name not in self.clock]
        changed = [*self.clock.values(), *(param.detach() for param in self.params), *states]
        return [(tensor, tensor.clone()) for tensor in changed]


def laid_out_as(pattern: Tensor, tensor: Tensor) -> Tensor:
    """Return `tensor` with the strides of `pattern`; it is copied if its numbers lie in another order.

    torch's functions on lists are a single kernel only if all strides are equal. Its fused kernels, and Trainyard's,
    process the memory of parameter, gradient and state in the same order.
    """
    strides = pattern.stride()
    if tensor.stride() == strides:
        return tensor
    if all(size == 1 or a == b for size, a, b in zip(tensor.shape, tensor.stride(), strides, strict=True)):
        return tensor.as_strided(tensor.shape, strides)
    return torch.empty_like(pattern).copy_(tensor)


def _is_row_wise(param: Tensor) -> bool:
    """Return whether a stack `[K, *shape]` is dense, with the first dimension outermost in memory."""
    numbers = 1
    dimensions = zip(param.stride()[1:], param.shape[1:], strict=True)
    for stride, size in sorted(dimension for dimension in dimensions if dimension[1] != 1):
        if stride != numbers:
            return False
        numbers *= size
    return len(param) == 1 or param.stride(0) == numbers


def restore(snapshot: Sequence[tuple[Tensor, Tensor]], members: Tensor) -> None:
    """Restore the state of the `members` (bool `[K]`) from the snapshot."""
    for tensor, before in snapshot:
        torch.where(members.view(-1, *[1] * (tensor.dim() - 1)), before, tensor, out=tensor)
