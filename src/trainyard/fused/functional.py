"""Functions of `torch.nn.functional` that compute all members of a stack together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from trainyard._torch_vmap import VmapExit, vmap_exit
from trainyard.fused.attention import attention
from trainyard.fused.draws import Draws
from trainyard.fused.multi_head_attention import multi_head_attention
from trainyard.fused.random_functions import DRAWING
from trainyard.fused.recurrent import KINDS, Direction, recurrent


class StackedFunctions(TorchFunctionMode):
    """Mode for a model's forward pass under `torch.vmap`.

    Random functions use `draws` if it is given. If fast paths are on, linear layers and classification losses compute
    all members together: `torch.vmap` decomposes `linear` into a product, two multiplications by 1 and an addition,
    copies the gradient of each weight once, and decomposes `cross_entropy` into about 20 operations. Here a linear
    layer is one operation, and three in the backward pass; a cross-entropy is six and three. Other cases (class
    weights, class probabilities, a transform of `torch.func` within the model) are left to torch.
    """

    def __init__(self, draws: Draws | None = None) -> None:
        super().__init__()
        self._functions: dict[Any, Callable[..., Any]] = {}
        way = vmap_exit()
        if way is not None:
            self._way: VmapExit = way
            self._functions = {
                F.linear: self._linear,
                F.cross_entropy: partial(self._class_loss, F.cross_entropy),
                F.nll_loss: partial(self._class_loss, F.nll_loss),
            }
        dropout = partial(F.dropout) if draws is None else partial(_dropout, draws)
        for func in KINDS:
            self._functions[func] = partial(recurrent, func, self._direction, dropout)
        self._functions[F.normalize] = _normalize
        self._functions[F.group_norm] = _group_norm
        self._drawing = {} if draws is None else {func: partial(rule, draws, func) for func, rule in DRAWING.items()}
        if way is not None:
            attend: Any = F.scaled_dot_product_attention
            drawing: Any = self._drawing.get(attend)
            other = attend if drawing is None else lambda *args, **kwargs: drawing(args, kwargs)
            self._functions[attend] = partial(attention, way, other)
            heads = multi_head_attention(self._linear, self._functions[attend], dropout)
            if heads is not None:
                self._functions[F.multi_head_attention_forward] = heads

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # The mode is off in here.
        own = self._functions.get(func)
        if own is None:
            drawing = self._drawing.get(func)
            return func(*args, **(kwargs or {})) if drawing is None else drawing(args, kwargs or {})
        named = dict(kwargs or {})
        first = args or ((named.pop("input"),) if "input" in named else ())
        return own(*first, **named)

    def _direction(self, step: Direction, weight: Tensor, *tensors: Tensor) -> Any:
        """Run a recurrent layer in one direction."""
        lean = F.linear in self._functions and self._way.takes(weight)
        if not lean or torch.is_autocast_enabled(weight.device.type):
            return step(F.linear, weight, *tensors)
        return self._way.call_several(partial(step, _stacked_linear_of), weight, *tensors)

    def _linear(self, features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self._way.takes(weight):
            return F.linear(features, weight, bias)
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            features, weight, bias = _cast(torch.get_autocast_dtype(device), features, weight, bias)
        dtype, shape = weight.dtype, weight.shape
        fits = (
            dtype.is_floating_point
            and len(shape) == 2
            and features.dtype == dtype
            and features.shape[-1:] == shape[1:]
            and (bias is None or (bias.dtype == dtype and bias.shape == shape[:1]))
        )
        if not fits:
            return F.linear(features, weight, bias)
        return self._way.call(_stacked_linear, weight, features, bias)

    def _class_loss(
        self,
        function: Callable[..., Tensor],
        scores: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float | Tensor = 0.0,
    ) -> Tensor:
        if isinstance(label_smoothing, Tensor):  # it is each member's own, and the loss is linear in it
            given = (function, scores, target, weight, size_average, ignore_index, reduce, reduction)
            plain, even = self._class_loss(*given, 0.0), self._class_loss(*given, 1.0)
            return plain + label_smoothing.to(plain.dtype) * (even - plain)
        smoothing = {"label_smoothing": label_smoothing} if label_smoothing else {}  # nll_loss has none
        fits = (
            self._way.takes(scores)
            and weight is None
            and size_average is None
            and reduce is None
            and reduction in ("mean", "sum", "none")
            and not target.is_floating_point()
            and scores.dim() > 1
            and target.numel() > 0
            and target.shape == scores.shape[:1] + scores.shape[2:]
        )
        if not fits:
            return function(scores, target, weight, size_average, ignore_index, reduce, reduction, **smoothing)
        losses = partial(function, ignore_index=ignore_index, reduction="none", **smoothing)
        return self._way.call(partial(_stacked_class_loss, losses, reduction, ignore_index), scores, target)


def _dropout(draws: Draws, features: Tensor, share: float) -> Tensor:
    dropped: Tensor = DRAWING[F.dropout](draws, F.dropout, (features, share), {})
    return dropped


def _normalize(features: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """Normalize as torch does, also with an output tensor, for which `torch.vmap` has no rule and which spectral norm
    uses."""
    found = F.normalize(features, p, dim, eps)
    return found if out is None else out.copy_(found)


def _group_norm(features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Normalize as torch does; within `torch.vmap`, torch before 2.14 cannot if the channels are last in memory."""
    return F.group_norm(features.contiguous(), *args, **kwargs)


class _StackedLinear(Function):
    """`linear` of K members: weights `[K, out, in]`, features `[K, N, in]`, biases `[K, out]` or None."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, features: Tensor, bias: Tensor | None) -> Tensor:
        of_weight, of_features, _ = ctx.needs_input_grad
        ctx.save_for_backward(weight if of_features else None, features if of_weight else None)
        if bias is None:
            return torch.bmm(features, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), features, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, features = ctx.saved_tensors
        of_weight, of_features, of_bias = ctx.needs_input_grad
        return (
            # In this order the gradient has the layout of the weight: it becomes `weight.grad` without a copy.
            torch.bmm(grad.mT, features) if of_weight else None,
            torch.bmm(grad, weight) if of_features else None,
            grad.sum(1) if of_bias else None,
        )


def _stacked_linear(weight: Tensor, features: Tensor, bias: Tensor | None) -> Tensor:
    shape = features.shape
    if len(shape) == 3:
        return _StackedLinear.apply(weight, features, bias)  # type: ignore[no-any-return,no-untyped-call]
    flat = features.reshape(shape[0], shape[1:-1].numel(), shape[-1])
    output: Tensor = _StackedLinear.apply(weight, flat, bias)  # type: ignore[no-untyped-call]
    return output.view(*shape[:-1], output.shape[-1])


def _stacked_linear_of(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _stacked_linear(weight, features, bias)


def _stacked_class_loss(
    losses: Callable[..., Tensor], reduction: str, ignore_index: int, scores: Tensor, target: Tensor
) -> Tensor:
    of_each = losses(scores.flatten(0, 1), target.flatten(0, 1)).view(target.shape)
    if reduction == "none":
        return of_each
    of_each = of_each.flatten(1)
    if reduction == "mean":
        of_each = of_each / (target != ignore_index).flatten(1).sum(1, keepdim=True)
    return of_each.sum(1)


def _cast(dtype: torch.dtype, *operands: Tensor | None) -> Iterator[Any]:
    """Cast the operands of a linear layer as `torch.autocast` does."""
    for tensor in operands:
        if tensor is None or tensor.dtype == torch.float64 or not tensor.is_floating_point():
            yield tensor
        else:
            yield tensor.to(dtype)
