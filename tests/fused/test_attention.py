"""Attention of a stack on the CPU: one call for all members, and what each computes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operations import Operations
from torch import Tensor
from torch.func import vmap

from trainyard.fused.functional import StackedFunctions

K, B, H, L, S, D = 3, 2, 2, 5, 4, 8
HIDDEN = torch.tensor([[True, True, True, False], [True, True, False, False]])
OWN = torch.linspace(-1, 1, K * L * S).view(K, L, S)
CASES: dict[str, Any] = {
    "plain": (None, None, {}),
    "causal": (None, None, {"is_causal": True}),
    "scale": (None, None, {"scale": 0.1}),
    "mask of positions": (HIDDEN[0].expand(L, S), None, {}),
    "mask of samples": (HIDDEN.view(B, 1, 1, S), None, {}),
    "mask of one sample": (HIDDEN[:1].view(1, 1, 1, S), None, {}),
    "mask of each member": (OWN, 0, {}),
    "mask of each member's samples": (OWN.view(K, 1, 1, L, S).repeat(1, B, H, 1, 1), 0, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_members_are_one_batch(name: str) -> None:
    mask, axis, more = CASES[name]
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(K, B, H, n, D, dtype=torch.float64, generator=generator) for n in (L, S, S)]
    mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    stacks = [part.clone().requires_grad_() for part in parts]

    functions = StackedFunctions()

    def member(q: Tensor, k: Tensor, v: Tensor, own: Tensor | None) -> Tensor:
        with functions:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=own, **more)

    with Operations() as seen:
        found = vmap(member, in_dims=(0, 0, 0, axis))(*stacks, mask)
    counts = seen.phases[seen.phase]
    assert sum(count for name, count in counts.items() if "attention" in name) == 1, counts
    found.square().sum().backward()
    for k in range(K):
        alone = [part[k].clone().requires_grad_() for part in parts]
        expected = F.scaled_dot_product_attention(*alone, mask if axis is None else mask[k], **more)
        expected.square().sum().backward()
        torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=1e-12)
        for stack, own in zip(stacks, alone, strict=True):
            torch.testing.assert_close(stack.grad[k], own.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_is_no_batch_of_heads_is_left_to_torch() -> None:
    q = torch.randn(K, L, D)

    functions = StackedFunctions()

    def member(own: Tensor) -> Tensor:
        with functions:
            return F.scaled_dot_product_attention(query=own, key=own, value=own)

    expected = torch.stack([F.scaled_dot_product_attention(own, own, own) for own in q])
    torch.testing.assert_close(vmap(member)(q), expected)
