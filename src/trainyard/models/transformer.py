"""Decoder-only transformer for sequences of characters (or any small vocabulary)."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.checks import boolean, choice, integer, number
from trainyard.errors import ConfigError
from trainyard.models.base import Preprocessor
from trainyard.models.supervised import Supervised

POSITIONS = {"learned": False, "rotary": True}


class Transformer(Supervised):
    """Predicts each next token from the previous tokens (GPT-2, Radford et al., 2019).

    Maps tokens `[B, T]`, T at most `context_length`, to logits `[B, T, vocab_size]`; the loss is the mean
    cross-entropy over all positions.

    Args:
        vocab_size: the number of distinct tokens.
        context_length: the maximum length of a sequence.
        dim: width of the residual stream.
        heads: the number of attention heads; a divisor of `dim`. With `rotary`, `dim / heads` must be even.
        layers: the number of blocks of attention and MLP.
        dropout: the dropout probability in [0, 1), for the embeddings, the attention and both residual branches.
        positions: `rotary` (RoFormer, Su et al., 2021; learns in fewer steps) or `learned` (one vector per position).
        tie_embeddings: use the token embedding as the output layer (Press & Wolf, 2017).
        data_preprocessor: see `BaseModel`.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        dim: int = 96,
        heads: int = 4,
        layers: int = 3,
        dropout: float = 0.0,
        positions: str = "rotary",
        tie_embeddings: bool = True,
        data_preprocessor: Preprocessor = None,
    ) -> None:
        vocab_size = integer("vocab_size", vocab_size, at_least=1)
        context_length = integer("context_length", context_length, at_least=1)
        dim = integer("dim", dim, at_least=1)
        heads = integer("heads", heads, at_least=1)
        layers = integer("layers", layers, at_least=1)
        dropout = number("dropout", dropout, at_least=0, below=1)
        tie_embeddings = boolean("tie_embeddings", tie_embeddings)
        rotary = POSITIONS[choice("positions", positions, POSITIONS)]
        if rotary and dim % 2:
            hint = "With positions=learned, dim can be odd."
            raise ConfigError("dim", dim, "an even number, because positions=rotary", hint=hint)
        whole = dim // 2 if rotary else dim
        if whole % heads:
            divisors = [n for n in range(1, whole + 1) if whole % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - heads))[:2])
            accepted = "a number for which dim / heads is an even integer" if rotary else "a divisor of dim"
            hint = "With positions=learned, dim / heads can be odd." if dim % heads == 0 else ""
            told = f"{accepted}, with dim={dim}; nearest: {' or '.join(map(str, near))}"
            raise ConfigError("heads", heads, told, hint=hint)
        net = Decoder(vocab_size, context_length, dim, heads, layers, dropout, rotary, tie_embeddings)
        super().__init__(net, token_cross_entropy, data_preprocessor)


def token_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over all positions: logits `[B, T, V]` and tokens `[B, T]` to a scalar."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


class Decoder(nn.Module):
    """Embedding, blocks, norm and output layer: tokens `[B, T]` to logits `[B, T, vocab_size]`."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        dim: int,
        heads: int,
        layers: int,
        dropout: float,
        rotary: bool,
        tie_embeddings: bool,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = None if rotary else nn.Embedding(context_length, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout, context_length, rotary) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = None if tie_embeddings else nn.Linear(dim, vocab_size, bias=False)

        # GPT-2: N(0, 0.02), with layers that add to the residual stream scaled down by the number of additions.
        for name, parameter in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits for the token after each position."""
        length = tokens.shape[-1]
        if length > self.context_length:
            raise ConfigError("context_length", self.context_length, f"at least {length}, the length of a sequence")
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[:length]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        # Tied, the read-out is no parameter of its own: optimizers, checkpoints and stacks have the matrix once.
        return F.linear(self.norm(x), self.tokens.weight if self.head is None else self.head.weight)


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input: `[B, T, dim]` to the same shape."""

    def __init__(self, dim: int, heads: int, dropout: float, context_length: int, rotary: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout, context_length, rotary)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(
                up=nn.Linear(dim, 4 * dim),
                gelu=nn.GELU(),
                out=nn.Linear(4 * dim, dim),
                dropout=nn.Dropout(dropout),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        x = x + self.attention(self.norm1(x))
        residual: Tensor = self.mlp(self.norm2(x))
        return x + residual


class Attention(nn.Module):
    """Causal self-attention with several heads: `[B, T, dim]` to the same shape."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, heads: int, dropout: float, context_length: int, rotary: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = dropout
        self.rotary = rotary
        if rotary:
            half = dim // heads // 2
            frequency = 10_000.0 ** (-torch.arange(half) / half)
            angle = torch.outer(torch.arange(context_length), frequency)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the attention's output."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, T, dim / heads]
        if self.rotary:
            q, k = self.rotate(q), self.rotate(k)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return F.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, dim)), dropout)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate queries or keys `[B, heads, T, D]` by an angle that grows with the position (RoFormer, eq. 34)."""
        length = x.shape[-2]
        cos, sin = self.cos[:length], self.sin[:length]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
