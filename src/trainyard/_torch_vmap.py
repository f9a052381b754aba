"""Private parts of torch that lead out of `torch.vmap`.

They are used together or not at all. Like those of `_torch_internals`, `_fast_paths` lists them and has their switch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainyard._fast_paths import Internal, register, usable

_NAME = "torch._functorch.pyfunctorch.temporarily_pop_interpreter_stack"
_LEVEL = 1
"""Number of the outermost transform of `torch.func`."""


class VmapExit:
    """Way out of a `torch.vmap` over members, for code that computes all members at once."""

    def __init__(self) -> None:
        from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

        functorch: Any = torch._C._functorch
        self._current_level = functorch.maybe_current_level
        self._is_batched = functorch.is_batchedtensor
        self._unwrap = functorch._unwrap_batched
        self._wrap = functorch._add_batch_dim
        self._outside = temporarily_pop_interpreter_stack

    def takes(self, tensor: Tensor) -> bool:
        """Return whether each member has its own `tensor`, and no transform of `torch.func` but the `vmap` is active.

        Within another transform, such as a `torch.func.grad` of the model's, the code must be written for one member.
        """
        return self._current_level() == _LEVEL and bool(self._is_batched(tensor))

    def call(self, function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        """Call a function on the stacks `[K, ...]` of some tensors, and return each member's part of the result.

        Args:
            function: returns a stack `[K, ...]`; its operations are recorded for the backward pass as ever.
            tensors: the first is one that `takes`; one that all members share is expanded to K.
        """
        with self._outside():
            found: list[Any] = [None if tensor is None else self._unwrap(tensor, _LEVEL) for tensor in tensors]
            first, axis = found[0]
            members = first.shape[axis]
            result = function(*[None if pair is None else _stack(pair[0], pair[1], members) for pair in found])
        stack: Tensor = self._wrap(result, 0, _LEVEL)
        return stack


def _stack(tensor: Tensor, axis: int | None, members: int) -> Tensor:
    """Return a stack `[K, ...]` of a tensor whose members lie along an axis; None: they share it."""
    if axis is None:
        return tensor.expand(members, *tensor.shape)
    return tensor if axis == 0 else tensor.movedim(axis, 0)


def vmap_exit() -> VmapExit | None:
    """Return the way out of `torch.vmap`; None where members are computed by torch's own rules of `vmap`."""
    return VmapExit() if usable(_NAME) else None


def _check() -> bool:
    way = VmapExit()
    taken: list[bool] = []

    def sums(own: Tensor, shared: Tensor) -> Tensor:
        return (own * shared).sum(1)

    def member(own: Tensor, shared: Tensor) -> Tensor:
        def nested(number: Tensor) -> Tensor:
            taken.extend((way.takes(number), way.takes(own)))
            return number + 0

        taken.extend((way.takes(own), way.takes(shared)))
        torch.vmap(nested)(own)
        return way.call(sums, own, shared)

    own, shared = torch.arange(6.0).view(2, 3).requires_grad_(), torch.tensor([1.0, 2.0])
    result = torch.vmap(member, in_dims=(1, None))(own, shared)
    result.sum().backward()  # type: ignore[no-untyped-call]
    return (
        taken == [True, False, False, False]
        and result.tolist() == [6.0, 9.0, 12.0]
        and own.grad is not None
        and own.grad.tolist() == [[1.0] * 3, [2.0] * 3]
        and not way.takes(own)
    )


register(
    (
        Internal(
            _NAME,
            ("fused.functional",),
            "linear layers and cross-entropies of all members of a stack in half of the operations",
            "torch's own rules of vmap",
            _check,
        ),
    ),
    when_switched=lambda: None,
)
