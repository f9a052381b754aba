"""Small random networks and the data that fits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.models import Supervised

CLASSES, WORDS, LENGTH, SIDE, FEATURES = 4, 11, 8, 8, 6
ACTIVATIONS = ("relu", "gelu", "tanh", "silu", "softplus")
_MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


class Drawn(Data):
    """Samples of four classes: `points` [6], `pictures` [1, 8, 8], `series` [8, 6], or `words` [8] to be continued."""

    def __init__(self, kind: str, batch: int, count: int) -> None:
        self.spec = {}
        self.splits = ("train", "val")
        self.batch = batch
        generator = torch.Generator().manual_seed(count)
        if kind == "words":
            words = torch.randint(WORDS, (count, LENGTH + 1), generator=generator)
            words[:, 1::2] = (3 * words[:, :-1:2] + 1) % WORDS
            self.tensors: tuple[Tensor, ...] = (words[:, :-1].contiguous(), words[:, 1:].contiguous())
            return
        shape = {"points": (FEATURES,), "pictures": (1, SIDE, SIDE), "series": (LENGTH, FEATURES)}[kind]
        target = torch.randint(CLASSES, (count,), generator=generator)
        places = torch.randn(CLASSES, *shape, generator=generator)
        noise = torch.randn(count, *shape, generator=generator)
        self.tensors = (places[target] + 0.7 * noise, target)

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        return TensorLoader(self.tensors, self.batch, shuffle=split == "train", seed=seed, device=device)


class LastState(nn.Module):
    """Recurrent layer that returns its last state: `[B, T, F]` to `[B, H]`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x)[0]
        return states[:, -1]


def drawn_blocks(random: Random, kind: str, *, dropout: bool) -> list[str]:
    """Draw the blocks of a network for points, pictures or series: see `net`."""
    width = random.randint(3, 9)
    drops = [f"dropout {random.choice((0.1, 0.4))}"] if dropout else []
    if kind == "pictures":
        norms = [[], ["batch_norm2"], [f"group_norm {width}"]]
        blocks = [f"conv {width}", *random.choice(norms), random.choice(ACTIVATIONS), *drops, "pool"]
    elif kind == "series":
        blocks = (
            [random.choice((f"gru {width}", f"lstm {width}", f"rnn {width}"))] if random.random() < 0.6 else ["flatten"]
        )
    else:
        blocks = []
    for _ in range(random.randint(1, 2)):
        width = random.randint(3, 9)
        linear = random.choice((f"linear {width}", f"linear {width}", f"weight_norm {width}", f"spectral_norm {width}"))
        blocks += [linear, *random.choice(([], ["batch_norm"], ["layer_norm"])), random.choice(ACTIVATIONS), *drops]
    return blocks


def net(kind: str, blocks: Sequence[str]) -> Supervised:
    """Build a network from blocks such as `conv 4`, `batch_norm`, `relu`; a linear layer to the classes ends it."""
    size = {"points": FEATURES, "pictures": 1, "series": FEATURES}[kind]
    layers: list[nn.Module] = []
    for block in blocks:
        name, _, number = block.partition(" ")
        width = int(number) if number.isdigit() else 0
        layers.append(_layer(name, number, size))
        if name == "flatten":
            size *= LENGTH
        elif name in ("conv", "gru", "lstm", "rnn", "linear", "weight_norm", "spectral_norm"):
            size = width
    return Supervised(nn.Sequential(*layers, nn.Linear(size, CLASSES)))


def _layer(name: str, number: str, size: int) -> nn.Module:
    if name in _MODULES:
        return _MODULES[name]()
    if name == "dropout":
        return nn.Dropout(float(number))
    if name in ("gru", "lstm", "rnn"):
        kinds: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
        return LastState(kinds[name](size, int(number), batch_first=True))
    if name in ("weight_norm", "spectral_norm"):
        norm: Any = getattr(nn.utils.parametrizations, name)
        module: nn.Module = norm(nn.Linear(size, int(number)))
        return module
    layers: dict[str, Callable[[], nn.Module]] = {
        "conv": lambda: nn.Conv2d(size, int(number), 3, padding=1),
        "pool": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "flatten": nn.Flatten,
        "linear": lambda: nn.Linear(size, int(number)),
        "batch_norm": lambda: nn.BatchNorm1d(size),
        "batch_norm2": lambda: nn.BatchNorm2d(size),
        "group_norm": lambda: nn.GroupNorm(1, size),
        "layer_norm": lambda: nn.LayerNorm(size),
    }
    return layers[name]()
