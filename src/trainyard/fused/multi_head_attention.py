"""Multi-head attention of all members: torch's own code, whose parts compute them at once."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def multi_head_attention(
    linear: Callable[..., Tensor], attend: Callable[..., Tensor], dropout: Callable[[Tensor, Any], Tensor]
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return `torch.nn.functional.multi_head_attention_forward` with other parts.

    Within a mode for functions, torch's own would call the mode again, and without one its parts know no members.

    Args:
        linear: as `torch.nn.functional.linear`.
        attend: as `torch.nn.functional.scaled_dot_product_attention`; its probability may be a tensor.
        dropout: from features and a probability, which may be a tensor.
    """

    def attend_by(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, share: float | _Share, is_causal: bool
    ) -> Tensor:
        return attend(q, k, v, mask, _number(share), is_causal)

    def dropout_by(features: Tensor, p: float | _Share) -> Tensor:
        return dropout(features, _number(p))

    parts: dict[str, Any] = {
        name: _rebound(getattr(F, name), {"linear": linear})
        for name in ("_in_projection", "_in_projection_packed")
        if hasattr(F, name)
    }
    parts |= {"linear": linear, "scaled_dot_product_attention": attend_by, "dropout": dropout_by}
    whole = _rebound(F.multi_head_attention_forward, parts | {"has_torch_function": lambda _: False})

    arguments = signature(whole)

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        given = arguments.bind(*args, **kwargs).arguments
        share = given.get("dropout_p")
        if isinstance(share, Tensor):
            given["dropout_p"] = _Share(share)
        found: tuple[Tensor, Tensor | None] = whole(**given)
        return found

    return forward


class _Share:
    """Probability of each member, above 0, of which torch's code asks whether it is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __gt__(self, other: float) -> bool:
        return True


def _number(share: float | _Share) -> float | Tensor:
    return share.tensor if isinstance(share, _Share) else share


def _rebound(function: Any, names: dict[str, Any]) -> Any:
    """Return a function with the code of another one, in which these global names stand for something else."""
    found = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    found.__kwdefaults__ = function.__kwdefaults__
    return found
