"""Functions that draw random numbers, and how each is called in a stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainyard._torch_vmap import private_functions
from trainyard.errors import Unfusable
from trainyard.fused.draws import Arguments, Draws, Named

SHARED = "different inplace randomness on an unbatched tensor"
"""Part of the error of `torch.vmap` about a tensor that all members share and that is filled with random numbers."""

Function = Callable[[Draws, Any, Arguments, Named], Any]


def _drawn(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    if kwargs.get("generator") is not None:
        raise Unfusable(
            "the model draws from its own torch.Generator, from which a stack would draw once for all members. "
            "Without the "
            "argument `generator`, each member draws from the generator of its run"
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
        return torch.where(draws.lane == draws.lane, value, value) if isinstance(value, Tensor) else value

    return _drawn(draws, func, tuple(map(own, args)), {key: own(value) for key, value in kwargs.items()})


def _dropout(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    active = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    if not active or share == 0:
        return func(*args, **kwargs)
    if func is F.dropout and draws.way is not None and 0 < share < 1 and not kwargs.get("inplace") and len(args) < 4:
        features = args[0] if args else kwargs["input"]
        if draws.way.takes(features) and features.device.type == "cpu" and features.is_floating_point():
            return draws.way.call(partial(_dropped, draws, share), features)
    return _drawn_of_copies(draws, func, args, kwargs)


def _dropped(draws: Draws, share: float, features: Tensor) -> Tensor:
    """Drop out of the features of all members, `[K, ...]`, as torch does on the CPU."""
    noise = draws.fill(
        torch.empty_like(features), lambda row, generator: row.bernoulli_(1 - share, generator=generator)
    )
    return features * noise.div_(1 - share)


def _attention(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    if not kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0):
        return func(*args, **kwargs)
    with plain_attention((args[0] if args else kwargs["query"]).device):
        return _drawn_of_copies(draws, func, args, kwargs)


def _multi_head_attention(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Any:
    share = kwargs.get("dropout_p", args[10] if len(args) > 10 else 0.0)
    active = kwargs.get("training", args[13] if len(args) > 13 else True)
    if not active or share == 0:
        return func(*args, **kwargs)
    with plain_attention((args[0] if args else kwargs["query"]).device):
        return _drawn(draws, func, args, kwargs)


def plain_attention(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which attention drops out by a function of its own.

    The other kernels on CUDA draw inside, and again in the backward pass, for all lanes from one generator.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


def _all_true(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> bool:
    """Pass what a distribution checks of its arguments: in a stack they have no values that code can ask for."""
    return True


def _empty(draws: Draws, func: Any, args: Arguments, kwargs: Named) -> Tensor:
    """Return a tensor that is each member's own, since it will be filled: with random numbers, perhaps."""
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
"""How each function that can draw random numbers is called in a stack, by the function."""
