"""Multi-head attention of all members: torch's code with parts that compute all members together."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import Tensor

from trainyard._torch_vmap import attention_of


def multi_head_attention(
    linear: Callable[..., Tensor], attend: Callable[..., Tensor], dropout: Callable[[Tensor, Any], Tensor]
) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """Return `torch.nn.functional.multi_head_attention_forward` for a stack; None if torch's function does not support
    this.

    Args:
        linear: see `torch.nn.functional.linear`.
        attend: see `torch.nn.functional.scaled_dot_product_attention`; its probability may be a tensor.
        dropout: from features and a probability, which may be a tensor.
    """

    def attend_by(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, share: float | _Share, is_causal: bool
    ) -> Tensor:
        return attend(q, k, v, mask, _number(share), is_causal)

    def dropout_by(features: Tensor, p: float | _Share) -> Tensor:
        return dropout(features, _number(p))

    whole = attention_of(linear, attend_by, dropout_by)
    if whole is None:
        return None
    arguments = signature(whole)

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        given = arguments.bind(*args, **kwargs).arguments
        share = given.get("dropout_p")
        if isinstance(share, Tensor):
            given["dropout_p"] = _Share(share)
        return whole(**given)

    return forward


class _Share:
    """Probability of each member, above 0, which torch's code compares with 0."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __gt__(self, other: float) -> bool:
        return True


def _number(share: float | _Share) -> float | Tensor:
    return share.tensor if isinstance(share, _Share) else share
