"""Stacked optimizer: K members whose hyperparameters differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainyard._torch_internals import foreach
from trainyard.errors import Unfusable
from trainyard.fused.optim import member_state, one_pass
from trainyard.fused.optim.bucket import MemberSlice, ParameterBucket, Tensors, laid_out_as, restore
from trainyard.fused.optim.graph_hyperparameters import Foresight, StackedGraphHyperparameters
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters

Group = dict[str, Any]
Columns = dict[str, Tensor]


class StackedOptimizer(Optimizer):
    """K optimizers of one class as one optimizer on stacked parameters `[K, *shape]`; made by `stack_optimizers`.

    Every number of a parameter group (`lr`, `weight_decay`, ...) is a float64 tensor `[K]` on the CPU; `betas` is a
    tuple of two tensors. To change a number, replace its tensor, because derived values are cached until then. Flags
    (`nesterov`, `fused`, ...) are plain values and are equal in all members.

    The result for a member is the result of its own optimizer, up to rounding. The state of a member is read and
    written in the form of that optimizer's `state_dict()`.

    The state of a parameter contains the stacked states of the members: `exp_avg` `[K, *shape]`, `step` `[K]`.
    Parameters that step together share their `step`.

    A subclass implements one family of optimizers. It defines the state of a new parameter (`new_state`), the factors
    of its arithmetic, and the arithmetic (`_update`). Each factor is a column `[K]`: `_fixed` factors depend only on
    the numbers, and `_clocked` factors change with every step. On CUDA, a family with Triton kernels (`kernels_of`)
    uses them.

    Attributes:
        numbers: the numbers of each parameter group, on the device.
        version: changes when states or members are replaced; a captured step is valid for one version.
        joinable: other members may take the rows. The bits of a row then depend only on the contents of this row, and
            not on the numbers and steps of other rows.
    """

    keys: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    """Names of the numbers that the family reads."""
    clock: ClassVar[tuple[str, ...]] = ("step",)
    """Names of the states that are one number per member."""
    shaping: ClassVar[tuple[str, ...]] = ()
    """Names of the flags that change what is computed."""
    kernels_of: ClassVar[one_pass.Family | None] = None
    """Name of the family's Triton kernels; None if it has none."""

    def __init__(self, groups: list[Group], members: int, defaults: dict[str, Any]) -> None:
        foreach.resolve()
        super().__init__(groups, defaults)
        devices = [param.device for group in groups for param in group["params"]]
        self._make_launch = one_pass.find(self.kernels_of, devices[0]) if self.kernels_of and devices else None
        self.members = members
        self.joinable = False
        self.version = 0
        self._forget()

    def step(self, skip: Tensor | None = None) -> None:  # type: ignore[override]
        """Step all members once; parameters without a gradient stay unchanged, as in torch.

        The step does not synchronize with the device.

        Args:
            skip: bool `[K]` on the parameters' device: members whose parameters and state stay unchanged.

        Raises:
            Unfusable: a gradient is sparse.
        """
        with torch.no_grad():
            self.refresh()
            if skip is not None and skip.device.type == "cpu" and not skip.any():
                skip = None
            for index, group in enumerate(self.param_groups):
                for bucket in self._plan(index):
                    if bucket.launch is not None:
                        bucket.launch(group, self.numbers[index], skip)
                    elif skip is None:
                        self._advance(group, self.numbers[index], bucket)
                    else:
                        before = bucket.snapshot()
                        self._advance(group, self.numbers[index], bucket)
                        restore(before, skip)
                        bucket.runs = None  # the members may have stepped unequally often from here on

    def refresh(self, *, copy: bool = True) -> bool:
        """Copy the numbers that were replaced to the device; `step` calls this first.

        A caller that replays a captured step calls this first.

        Args:
            copy: False if the caller writes the numbers to the device itself, and calls `derive`.

        Returns:
            Whether a number changed to or from 0 in a way that changes the arithmetic (a weight decay, a
            momentum): a captured step must then be captured again.
        """
        other = False
        for index, (group, numbers) in enumerate(zip(self.param_groups, self.numbers, strict=True)):
            branches = [(numbers.some(name), numbers.every(name)) for name in self._branching]
            if numbers.refresh(group, copy=copy):
                other |= branches != [(numbers.some(name), numbers.every(name)) for name in self._branching]
                if copy:
                    self._fill(index, self._plans[index][1])
        return other

    def derive(self) -> None:
        """Compute the values that are derived from the numbers on the device."""
        for index, (_, buckets) in enumerate(self._plans):
            self._fill(index, buckets)

    def graph_hyperparameters(self, foresight: Foresight | None = None) -> StackedGraphHyperparameters:
        """Return the hyperparameters that a captured step reads; `foresight` returns the values of the next steps."""
        return StackedGraphHyperparameters(self, foresight)

    def keep(self, index: Tensor) -> None:
        """Keep only the members `index` (integers `[k]`); the parameters have already been cut to these members."""
        on_cpu = index.cpu()
        for group in self.param_groups:
            for key, value in group.items():
                if isinstance(value, Tensor):
                    group[key] = value.index_select(0, on_cpu)
                elif _is_row_tuple(value):
                    group[key] = tuple(row.index_select(0, on_cpu) for row in value)
        for state in self.state.values():
            for key, value in state.items():
                state[key] = value[index.to(value.device)]
        self.members = index.numel()
        self._forget()

    def member_param_groups(self, member: int) -> list[Group]:
        """Return the parameter groups of a member: its numbers, the flags, and its slices of the parameters."""
        groups = []
        for group in self.param_groups:
            slices = [param.detach()[member] for param in group["params"]]
            groups.append({**member_state.numbers_of(self, group, member), "params": slices})
        return groups

    def member_state_dict(self, member: int) -> dict[str, Any]:
        """Return the `state_dict()` of the member's single-run optimizer; the tensors are copies."""
        return member_state.read(self, member)

    def load_member_state_dict(self, member: int, state_dict: Mapping[str, Any]) -> None:
        """Load the `state_dict()` of the member's single-run optimizer, including its numbers.

        Raises:
            ValueError: the state has other parameter groups or shapes.
            Unfusable: the state is from an optimizer with another flag, such as `amsgrad`.
        """
        self._settle(member_state.write(self, member, state_dict))

    def adopt(self, member: int, states: Mapping[int, Mapping[str, Any]]) -> None:
        """Load the states of a member's parameters, numbered across all groups."""
        self._settle(member_state.write_states(self, member, states))

    # Methods of a family.

    def new_state(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step."""
        dtype = torch.float32 if group.get("fused") else member_state.scalar_dtype()
        return {"step": torch.zeros(self.members, dtype=dtype, device=param.device)}

    def has(self, group: Group, state: Mapping[str, Tensor], member: int) -> list[str]:
        """Return the parts of a parameter's `state` that the member's single-run optimizer would have at this step."""
        return list(state) if state["step"][member] > 0 else []

    def steps_of(self, saved: Mapping[str, Any]) -> Tensor | float:
        """Return the number of steps of a parameter, from the state `saved` by the member's single-run optimizer."""
        steps: Tensor | float = saved["step"]
        return steps

    def _tick(self, numbers: StackedHyperparameters) -> Tensor | float:
        """Return the increment of `step` per step."""
        return 1.0

    def _decoupled(self, group: Group) -> bool:
        """Return whether weight decay shrinks the parameter instead of being part of the gradient."""
        return bool(group.get("decoupled_weight_decay", False))

    def _fixed(self, group: Group, numbers: StackedHyperparameters) -> Columns:
        values = numbers.device
        if self._decoupled(group):
            return {"decay": 1 - values["lr"] * values["weight_decay"]}
        return {"weight_decay": values["weight_decay"]}

    def _clocked(self, group: Group, numbers: StackedHyperparameters, clock: dict[str, Tensor]) -> Columns:
        return {}

    def _update(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> None:
        raise NotImplementedError

    # Methods that all families share.

    def _advance(self, group: Group, numbers: StackedHyperparameters, bucket: ParameterBucket) -> None:
        tick = self._tick(numbers)
        if isinstance(tick, Tensor) or tick:
            bucket.clock["step"].add_(tick)
        bucket.fill(self._clocked(group, numbers, bucket.clock))
        for block, grads in zip(bucket.blocks, bucket.grads(bucket.blocks), strict=True):
            self._update(group, numbers, block, self._decayed(group, numbers, block, grads))

    def _decayed(self, group: Group, numbers: StackedHyperparameters, block: MemberSlice, grads: Tensors) -> Tensors:
        """Return the gradients for the update, after weight decay. `p.grad` itself is not changed."""
        if group["maximize"]:
            grads = foreach.neg(grads)
        if not numbers.some("weight_decay"):
            return grads
        if self._decoupled(group):
            foreach.mul_(block.params, block.column("decay"))
            return grads
        decayed: list[Tensor] = foreach.addcmul(grads, block.params, block.column("weight_decay"))
        return decayed

    def _plan(self, index: int) -> list[ParameterBucket]:
        """Return the buckets of a group; they are rebuilt if other parameters have gradients than before."""
        group = self.param_groups[index]
        key = [None if param.grad is None else param.data_ptr() for param in group["params"]]
        if self._plans[index][0] != key:
            buckets = self._gather(group)
            self._fill(index, buckets)
            self._plans[index] = (key, buckets)
        return self._plans[index][1]

    def _fill(self, index: int, buckets: Sequence[ParameterBucket]) -> None:
        """Compute the columns that depend on the numbers of a group; a `launch` reads the numbers themselves."""
        for bucket in buckets:
            if bucket.launch is None:
                bucket.fill(self._fixed(self.param_groups[index], self.numbers[index]))

    def _gather(self, group: Group) -> list[ParameterBucket]:
        together: list[tuple[list[Tensor], list[dict[str, Any]]]] = []
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.layout is not torch.strided:
                raise Unfusable("a gradient is sparse, which is not supported in a stack")
            if not self.state.get(param):
                self.state[param] = self.new_state(group, param)
            state = self.state[param]
            for name in state.keys() - set(self.clock):
                state[name] = laid_out_as(param, state[name])
            for params, states in together:
                if params[0].dtype == param.dtype and all(_same(states[0][name], state[name]) for name in self.clock):
                    params.append(param)
                    states.append(state)
                    break
            else:
                together.append(([param], [state]))
        buckets = []
        for params, states in together:
            clock = {name: states[0][name].clone() for name in self.clock}  # shared with no parameter outside
            for state in states:
                state.update(clock)
            bucket = ParameterBucket(params, states, clock)
            if self._make_launch is not None and bucket.row_wise:
                bucket.launch = self._make_launch(bucket)
            buckets.append(bucket)
        return buckets

    def _settle(self, in_place: bool) -> None:
        """Use states that were written; a captured step stays valid if they are the same tensors."""
        if not in_place:
            self._forget()
        for _, buckets in self._plans:
            for bucket in buckets:
                bucket.runs = None  # the members may have stepped unequally often

    def _forget(self) -> None:
        """Drop the values that were derived from numbers and states."""
        self.version += 1
        devices = [group["params"][0].device if group["params"] else None for group in self.param_groups]
        self.numbers = [
            StackedHyperparameters(group, self.keys, device or torch.device("cpu"))
            for group, device in zip(self.param_groups, devices, strict=True)
        ]
        self._plans: list[tuple[list[int | None], list[ParameterBucket]]] = [([], []) for _ in self.param_groups]
        self._branching = [name for name in ("weight_decay", "momentum", "dampening") if name in self.keys]


def _is_row_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(row, Tensor) for row in value)


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or (first.dtype == second.dtype and torch.equal(first, second))
