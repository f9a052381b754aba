"""Replay memory: the latest transitions of a simulation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FIELDS = ("observation", "action", "reward", "following", "done")


class ReplayMemory:
    """Ring buffer of the latest transitions, as tensors.

    Args:
        size: the maximum number of transitions.

    Attributes:
        count: the number of transitions that were added in total.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self._columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.count, self.size)

    def add(self, **transition: Tensor) -> None:
        """Add a transition: a tensor for each of `FIELDS`, with the same shapes in every call."""
        for name in FIELDS:
            value = transition[name]
            if name not in self._columns:
                self._columns[name] = value.new_zeros((self.size, *value.shape))
            self._columns[name][self.count % self.size] = value
        self.count += 1

    def sample(self, number: int, device: torch.device) -> dict[str, Tensor]:
        """Return transitions `[number, ...]` by field, drawn with replacement by torch's CPU generator."""
        index = torch.randint(len(self), (number,))
        return {name: column[index].to(device) for name, column in self._columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions and their number; the tensors are copies."""
        return {
            "count": self.count,
            "columns": {name: column[: len(self)].clone() for name, column in self._columns.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self._columns = {}
        for name, held in state["columns"].items():
            self._columns[name] = held.new_zeros((self.size, *held.shape[1:]))
            self._columns[name][: len(held)] = held
