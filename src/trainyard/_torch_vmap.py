"""Private parts of torch for stacks: leaving `torch.vmap`, and random operations inside it.

They are listed and switched in `_fast_paths`, like those of `_torch_internals`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainyard._fast_paths import Internal, register, usable, works

_TorchMode: Any = object  # where torch has none, `sees_operations` says so
with suppress(ImportError):
    from torch.utils import _python_dispatch

    _TorchMode = getattr(_python_dispatch, "TorchDispatchMode", object)

_MODE = "torch.utils._python_dispatch.TorchDispatchMode"
_OF_DISTRIBUTIONS = ("_standard_gamma", "_sample_dirichlet", "_is_all_true")
_NAME = "torch._functorch.pyfunctorch.temporarily_pop_interpreter_stack"
_HEADS = "torch.nn.functional._in_projection_packed"
_LEVEL = 1
"""Number of the outermost transform of `torch.func`."""


class DispatchMode(_TorchMode):  # type: ignore[misc]
    """Base of modes that receive each operation, as `torch.utils._python_dispatch.TorchDispatchMode` does."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False. With True, the first operation in the mode imports `torch._dynamo`, which takes a second."""
        return False


class VmapExit:
    """Leaves a `torch.vmap` over members, for code that computes all members together."""

    def __init__(self) -> None:
        from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

        functorch: Any = torch._C._functorch
        self._current_level = functorch.maybe_current_level
        self._is_batched = functorch.is_batchedtensor
        self._unwrap = functorch._unwrap_batched
        self._wrap = functorch._add_batch_dim
        self._outside = temporarily_pop_interpreter_stack

    def takes(self, tensor: Tensor) -> bool:
        """Return whether each member has its own `tensor`, and only the `vmap` is active of torch's transforms.

        Inside another transform, such as a `torch.func.grad` in the model, the code must be written for one member.
        """
        return self._current_level() == _LEVEL and bool(self._is_batched(tensor))

    def call(self, function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        """Call a function on the stacks `[K, ...]` of some tensors, and return each member's part of the result.

        Args:
            function: returns a stack `[K, ...]`; its operations are recorded for the backward pass as usual.
            tensors: the first must be accepted by `takes`; a tensor that all members share is expanded to K.
        """
        with self._outside():
            result = function(*self._stacks(tensors))
        stack: Tensor = self._wrap(result, 0, _LEVEL)
        return stack

    def call_several(self, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Do the same as `call` for a function that returns several stacks."""
        with self._outside():
            results = function(*self._stacks(tensors))
        return tuple(self._wrap(result, 0, _LEVEL) for result in results)

    def _stacks(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        found: list[Any] = [None if tensor is None else self._unwrap(tensor, _LEVEL) for tensor in tensors]
        first, axis = found[0]
        members = first.shape[axis]
        return [None if pair is None else _stack(pair[0], pair[1], members) for pair in found]


def _stack(tensor: Tensor, axis: int | None, members: int) -> Tensor:
    """Return a stack `[K, ...]` of a tensor whose members are along an axis; None: all members share the tensor."""
    if axis is None:
        return tensor.expand(members, *tensor.shape)
    return tensor if axis == 0 else tensor.movedim(axis, 0)


def vmap_exit() -> VmapExit | None:
    """Return the object that leaves `torch.vmap`; None if members are computed by torch's own rules of `vmap`."""
    return VmapExit() if usable(_NAME) else None


def sees_operations() -> bool:
    """Return whether `DispatchMode` sees the operations of all members, with fast paths on or off."""
    return works(_MODE)


def attention_of(
    linear: Callable[..., Tensor], attend: Callable[..., Tensor], dropout: Callable[..., Tensor]
) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """Return `torch.nn.functional.multi_head_attention_forward` with other parts; None if torch's function has other
    parts.

    It is torch's code, in which three names refer to these functions. Inside a mode for functions, torch's function
    would call the mode again; outside of the mode, its parts do not know the members of a stack.

    Args:
        linear, attend, dropout: called as torch's code calls `linear`, `scaled_dot_product_attention` and `dropout`.
    """
    return _rebound_attention(linear, attend, dropout) if has_attention_parts() else None


def has_attention_parts() -> bool:
    """Return whether `attention_of` returns a function."""
    return usable(_HEADS)


def _rebound_attention(linear: Any, attend: Any, dropout: Any) -> Any:
    parts = {
        name: _rebound(getattr(F, name), {"linear": linear}) for name in ("_in_projection", "_in_projection_packed")
    }
    parts |= {"linear": linear, "scaled_dot_product_attention": attend, "dropout": dropout}
    return _rebound(F.multi_head_attention_forward, parts | {"has_torch_function": lambda _: False})


def _rebound(function: Any, names: dict[str, Any]) -> Any:
    """Return a function with the code of another one, in which these global names refer to other objects."""
    found = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    found.__kwdefaults__ = function.__kwdefaults__
    return found


def private_functions() -> dict[str, Any]:
    """Return the functions that `torch.distributions` calls under private names, by name, if torch has them.

    Two of them draw random numbers, and one checks the arguments of a distribution.
    """
    return {name: getattr(torch, name) for name in _OF_DISTRIBUTIONS if hasattr(torch, name)}


def _check_mode() -> bool:
    seen: list[list[int]] = []

    class Seen(DispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.normal_.default:
                seen.append(list(args[0].shape))
                return args[0].zero_()
            return func(*args, **(kwargs or {}))

    def member(own: Tensor) -> Tensor:
        with Seen():
            return torch.empty_like(own).normal_() + own

    found = torch.vmap(member, randomness="different")(torch.ones(2, 3))
    return seen == [[2, 3]] and found.tolist() == [[1.0] * 3] * 2


def _check_functions() -> bool:
    return private_functions().keys() == set(_OF_DISTRIBUTIONS)


def _check_heads() -> bool:
    layer = torch.nn.MultiheadAttention(4, 2, dropout=0.5)
    x = torch.linspace(-1, 1, 24).view(3, 2, 4)
    calls: list[str] = []

    def linear(*args: Any) -> Tensor:
        calls.append("linear")
        return F.linear(*args)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, share: float, is_causal: bool) -> Tensor:
        calls.append(f"attend {share}")
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal)

    def dropout(features: Tensor, p: float) -> Tensor:
        calls.append(f"dropout {p}")
        return features

    forward = _rebound_attention(linear, attend, dropout)
    given = (x, x, x, 4, 2, layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.5)
    projection = (layer.out_proj.weight, layer.out_proj.bias)
    found = [forward(*given, *projection, need_weights=weights)[0] for weights in (False, True)]
    expected = layer.eval()(x, x, x)[0]
    steps = ["linear", "attend 0.5", "linear", "linear", "dropout 0.5", "linear"]
    return calls == steps and all(torch.allclose(each, expected, atol=1e-6) for each in found)


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
            "linear layers and cross-entropies of all members of a stack in half the number of operations",
            "torch's batching rules",
            _check,
        ),
        Internal(
            _HEADS,
            ("fused.multi_head_attention",),
            "multi-head attention of all members of a stack in one call",
            "torch's batching rules, which compute attention on the CPU for one member at a time",
            _check_heads,
        ),
        Internal(
            _MODE,
            ("fused.draws",),
            "the random numbers of a single run for each member; also used when fast paths are off",
            "torch's batching rules: random numbers with the same distribution as in a single run",
            _check_mode,
        ),
        Internal(
            "torch._is_all_true",
            ("fused.random_functions",),
            "distributions in a stack, without checks of their arguments; also used when fast paths are off",
            "jobs whose models use torch.distributions train one by one",
            _check_functions,
        ),
    ),
    when_switched=lambda: None,
)
