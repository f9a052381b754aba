"""Attention of all members on the CPU: torch's kernel computes their batches as one batch.

`torch.vmap` has no rule for that kernel, and calls it for each member.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from trainyard._torch_vmap import VmapExit


def attention(
    way: VmapExit,
    other: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float | Tensor = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> Tensor:
    """Return the attention of the members: `[B, heads, L, dim]` of each.

    Args:
        way: leaves `torch.vmap`.
        other: computes the attention if the members cannot be one batch: with dropout, on another device, for other
            shapes.
        query, key, value, attn_mask, dropout_p, is_causal, more: as `torch.nn.functional.scaled_dot_product_attention`
            takes them.
    """
    fits = (
        not isinstance(dropout_p, Tensor)  # it is each member's own
        and not dropout_p
        and query.device.type == "cpu"
        and query.dim() == key.dim() == value.dim() == 4
        and query.shape[0] == key.shape[0] == value.shape[0]
        and way.takes(query)
        and (attn_mask is None or attn_mask.dim() <= 4)
    )
    if not fits:
        return other(query, key, value, attn_mask, dropout_p, is_causal, **more)
    own = attn_mask is not None and way.takes(attn_mask)
    call = partial(_as_one_batch, None if own else attn_mask, is_causal, more)
    return way.call(call, query, key, value, attn_mask if own else None)


def _as_one_batch(
    shared: Tensor | None, is_causal: bool, more: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, own: Any
) -> Tensor:
    """Return the attention of stacks `[K, B, heads, L, dim]`, with a mask that all share, or a stack of masks."""
    members, batch = query.shape[:2]
    mask = shared
    if own is not None:
        mask = own.reshape(members, *[1] * (5 - own.dim()), *own.shape[1:])
        mask = mask.expand(members, batch, *mask.shape[2:]).flatten(0, 1)
    elif shared is not None and shared.dim() == 4 and shared.shape[0] > 1:
        mask = shared.expand(members, *shared.shape).flatten(0, 1)
    q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    found = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, **more)
    return found.view(members, batch, *found.shape[1:])
