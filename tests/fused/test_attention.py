"""Attention of a stack on the CPU: one call for all members, and what each computes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operations import Operations
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

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


HEADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "self-attention": ({"batch_first": True}, {"need_weights": False}),
    "weights": ({"batch_first": True}, {}),
    "time first": ({}, {"need_weights": False}),
    "causal": ({"batch_first": True}, {"need_weights": False, "is_causal": True, "attn_mask": "causal"}),
    "padding": ({"batch_first": True}, {"need_weights": False, "key_padding_mask": "padding"}),
    "both masks": ({"batch_first": True}, {"attn_mask": "causal", "key_padding_mask": "padding"}),
    "other keys": ({"batch_first": True, "kdim": 6, "vdim": 7}, {"need_weights": False}),
    "biases": ({"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, {"need_weights": False}),
}


@pytest.mark.parametrize("name", HEADS)
def test_multi_head_attention_of_members_is_one_batch(name: str) -> None:
    """Also where torch has a fast path for one, in evaluation."""
    made, given = HEADS[name]
    masks = {
        "causal": torch.ones(L, L, dtype=torch.bool).triu(1),
        "padding": torch.tensor([[False] * L, [False] * (L - 2) + [True] * 2]),
    }
    call = {key: masks.get(value, value) if isinstance(value, str) else value for key, value in given.items()}
    torch.manual_seed(0)
    layers = [nn.MultiheadAttention(D, H, dtype=torch.float64, **made) for _ in range(K)]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.uniform_(-0.5, 0.5)
    x = torch.randn(K, B, L, D, dtype=torch.float64)
    others = [torch.randn(K, B, L, made.get(width, D), dtype=torch.float64) for width in ("kdim", "vdim")]
    own_keys = "kdim" in made

    def of(layer: nn.Module, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found: Tensor = layer(*((x, key, value) if own_keys else (x, x, x)), **call)[0]
        return found

    functions = StackedFunctions()
    stacked, _ = stack_module_state(layers)

    class Called(nn.Module):
        """Calls the layer as `of` does, for `functional_call`."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = layers[0]

        def forward(self, *inputs: Tensor) -> Tensor:
            return of(self.layer, *inputs)

    called = Called()

    def member(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        with functions:
            found: Tensor = functional_call(called, {f"layer.{k}": v for k, v in parameters.items()}, inputs)
            return found

    for training in (True, False):
        for layer in layers:
            layer.train(training)
        with Operations() as seen:
            found = vmap(member)(stacked, x, *others)
        counts = seen.phases[seen.phase]
        if not call.get("need_weights", True):
            assert sum(count for each, count in counts.items() if "attention" in each) == 1, counts
        gradients = torch.autograd.grad(found.square().sum(), [*stacked.values()])
        for k, layer in enumerate(layers):
            with torch.enable_grad():
                expected = of(layer, x[k], *(each[k] for each in others))
            torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=1e-12)
            own = torch.autograd.grad(expected.square().sum(), [*layer.parameters()])
            for mine, its in zip(gradients, own, strict=True):
                torch.testing.assert_close(mine[k], its, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_is_no_batch_of_heads_is_left_to_torch() -> None:
    q = torch.randn(K, L, D)

    functions = StackedFunctions()

    def member(own: Tensor) -> Tensor:
        with functions:
            return F.scaled_dot_product_attention(query=own, key=own, value=own)

    expected = torch.stack([F.scaled_dot_product_attention(own, own, own) for own in q])
    torch.testing.assert_close(vmap(member)(q), expected)
