"""Static outputs of a captured step: numbers that stay at the addresses to which the graph writes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class StaticOutputs:
    """Outputs of a captured step, in memory that the next replay overwrites; tensors of one kind are stacked."""

    outputs: dict[str, Tensor]
    stacks: list[tuple[list[str], Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        alike: dict[Hashable, list[str]] = {}
        for name, value in self.outputs.items():
            alike.setdefault((value.shape, value.dtype, value.device), []).append(name)
        self.stacks = [(names, _stack([self.outputs[name] for name in names])) for names in alike.values()]

    def read(self) -> dict[str, Tensor]:
        """Return copies, which later replays do not change."""
        found: dict[str, Tensor] = {}
        for names, stack in self.stacks:
            found.update(zip(names, stack.clone().unbind(0), strict=True))
        return {name: found[name] for name in self.outputs}


def _stack(values: list[Tensor]) -> Tensor:
    """Return `torch.stack(values)`; a view for a single value."""
    return torch.stack(values) if len(values) > 1 else values[0].unsqueeze(0)
