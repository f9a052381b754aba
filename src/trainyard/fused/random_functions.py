"""Functions that draw random numbers, and their calls in a stack."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.nn import init
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainyard._torch_vmap import private_functions
from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.draws import Arguments, Draws, Named

SHARED = "different inplace randomness on an unbatched tensor"
"""Part of the error of `torch.vmap` about a tensor that all members share and that is filled with random numbers."""

Function = Callable[[Draws, Any, Arguments, Named], Any]


def _drawn(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    if kwargs.get("generator") is not None:
        raise Unfusable(
            "the model draws from its own torch.Generator, which a stack would use once for all members. Omit "
            "the argument `generator`, so that each member uses the generator of its run"
        )
    with draws:
        return func(*args, **kwargs)


def _drawn_of_copies(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    """Call a function that fills a tensor like its argument with random numbers, which all members may share."""
    try:
        return _drawn(draws, func, args, kwargs)
    except RuntimeError as error:
        if SHARED not in str(error) or kwargs.get("inplace"):
            raise
    # Nothing was drawn yet.

    def own(value: Any) -> Any:
        return _each_its_own(draws, value) if isinstance(value, Tensor) else value

    return _drawn(draws, func, tuple(map(own, args)), {key: own(value) for key, value in kwargs.items()})


def _each_its_own(draws: Draws, tensor: Tensor) -> Tensor:
    """Return a separate tensor for each member, from a tensor that all members may share."""
    return torch.where(draws.lane == draws.lane, tensor, tensor)


def _dropout(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    active = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    if isinstance(share, Tensor):
        features = args[0] if args else kwargs["input"]
        return _own_dropout(draws, func, features, share, kwargs) if active else features
    if not active or share == 0:
        return func(*args, **kwargs)
    if func is F.dropout and draws.way is not None and 0 < share < 1 and not kwargs.get("inplace") and len(args) < 4:
        features = args[0] if args else kwargs["input"]
        if draws.way.takes(features) and features.device.type == "cpu" and features.is_floating_point():
            return draws.way.call(partial(_dropped, draws, share), features)
    return _drawn_of_copies(draws, func, args, kwargs)


def _dropped(draws: Draws, share: float, features: Tensor) -> Tensor:
    """Apply dropout to the features of all members, `[K, ...]`, as torch does on the CPU."""
    noise = draws.fill(
        torch.empty_like(features), lambda row, generator: row.bernoulli_(1 - share, generator=generator)
    )
    return features * noise.div_(1 - share)


def _own_dropout(draws: Draws, func: Any, features: Tensor, share: Tensor, kwargs: Named) -> Tensor:
    """Apply dropout to the features of each member with the probability of the member.

    Raises:
        PlacesDiffer: the function needs one probability. A stack that no job joins has one if its members agree.
    """
    if func is not F.dropout or draws.way is None:
        raise PlacesDiffer(f"the probability of {func.__name__} must be equal for all members")
    if not draws.way.takes(features):
        features = _each_its_own(draws, features)
    dropped = draws.way.call(partial(_dropped_by, draws), features, share)
    return features.copy_(dropped) if kwargs.get("inplace") else dropped


def _dropped_by(draws: Draws, features: Tensor, shares: Tensor) -> Tensor:
    """Apply dropout to the features of all members, `[K, ...]`, with the probabilities `[K]`, as torch does on the
    CPU."""
    on_host = features.device.type == "cpu"

    def draw(row: Tensor, share: Tensor, generator: Generator) -> Tensor:
        if not on_host:  # a captured step reads the probability as it is then
            return torch.empty_like(row).bernoulli_(1 - share, generator=generator)
        number = float(share.numpy().item())  # no operation that a captured step would have to repeat
        if number in (0, 1):
            return torch.full_like(row, 1 - number)
        return torch.empty_like(row).bernoulli_(1 - number, generator=generator).div_(1 - number)

    shares = shares.view(-1, *[1] * (features.dim() - 1))
    noise = torch.stack(draws.each(draw, [features, shares]))
    return features * (noise if on_host else noise.div_((1 - shares).clamp(min=torch.finfo(noise.dtype).tiny)))


def _attention(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    share = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
    if isinstance(share, Tensor):
        return _own_attention(draws, *args, **kwargs)
    if not share:
        return func(*args, **kwargs)
    with plain_attention((args[0] if args else kwargs["query"]).device):
        return _drawn_of_copies(draws, func, args, kwargs)


def _own_attention(
    draws: Draws,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: Any = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention with the dropout probability of each member, as torch's plain kernel does."""
    if enable_gqa:
        raise PlacesDiffer("the dropout probability of attention with enable_gqa=True must be equal for all members")
    root = (1 / math.sqrt(query.shape[-1]) if scale is None else scale) ** 0.5
    scores = (query * root) @ (key * root).transpose(-2, -1)
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return _own_dropout(draws, F.dropout, weights, dropout_p, {}) @ value


def _multi_head_attention(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    share = kwargs.get("dropout_p", args[10] if len(args) > 10 else 0.0)
    active = kwargs.get("training", args[13] if len(args) > 13 else True)
    if not active or share == 0:
        return func(*args, **kwargs)
    with plain_attention((args[0] if args else kwargs["query"]).device):
        return _drawn(draws, func, args, kwargs)


def plain_attention(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which attention calls a separate dropout function.

    On CUDA, the other kernels draw internally, and again in the backward pass, from one generator for all lanes.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


def _all_true(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> bool:
    """Accept the arguments of a distribution without a check: in a stack, code cannot read their values."""
    return True


def _empty(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Tensor:
    """Return a separate tensor for each member, because it will be filled, possibly with random numbers."""
    if not args or kwargs.keys() - {"dtype", "device"}:
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    like = torch.empty((), **kwargs)
    return draws.lane.new_empty(args[0] if len(args) == 1 else args, dtype=like.dtype, device=like.device)


def _new_empty(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Tensor:
    sized = len(args) > 1 and all(isinstance(part, int | torch.Size) for part in args[1:])
    if not sized or kwargs.keys() - {"dtype", "device"}:
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    like, *size = args
    found = {"dtype": like.dtype, "device": like.device} | dict(kwargs)
    return draws.lane.new_empty(size[0] if len(size) == 1 else size, **found)


def _empty_like(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Tensor:
    if len(args) != 1 or kwargs.keys() - {"dtype", "device"} or not args[0].is_contiguous():
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    return _new_empty(draws, func, (args[0], args[0].shape), kwargs)


def _found(module: Any, *names: str) -> list[Any]:
    return [getattr(module, name) for name in names if hasattr(module, name)]


def _found_in(functions: Mapping[str, Any], *names: str) -> list[Any]:
    return [functions[name] for name in names if name in functions]


def _drawing() -> dict[Any, Function]:
    kinds = ("dropout", "alpha_dropout", "feature_alpha_dropout", "feature_dropout")
    dropouts = [
        *_found(F, "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
        *_found(torch, *kinds, *(f"{kind}_" for kind in kinds)),
    ]
    of_torch = (
        "bernoulli binomial multinomial normal poisson rand rand_like randint randint_like randn randn_like randperm "
        "rrelu rrelu_ native_dropout"
    )
    of_tensors = "bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial normal_ random_ uniform_"
    of_layers = "rrelu rrelu_ fractional_max_pool2d fractional_max_pool3d"
    initial = [name for name in dir(init) if name.endswith("_") and not name.startswith("_")]
    private = private_functions()
    checks = _found_in(private, "_is_all_true")
    drawn = [
        *_found_in(private, "_standard_gamma", "_sample_dirichlet"),
        *_found(torch, *of_torch.split()),
        *_found(Tensor, *of_tensors.split()),
        *_found(F, *of_layers.split()),
        *_found(init, *initial),
    ]
    return {
        **dict.fromkeys(drawn, _drawn),
        **dict.fromkeys(dropouts, _dropout),
        F.scaled_dot_product_attention: _attention,
        F.multi_head_attention_forward: _multi_head_attention,
        F.gumbel_softmax: _drawn_of_copies,
        torch.empty: _empty,
        torch.empty_like: _empty_like,
        Tensor.new_empty: _new_empty,
        Tensor.new: _new_empty,
        **dict.fromkeys(checks, _all_true),
    }


DRAWING = _drawing()
"""Replacement in a stack for each function that can draw random numbers."""
