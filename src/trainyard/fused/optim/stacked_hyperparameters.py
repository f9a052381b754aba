"""Hyperparameters of a parameter group, one row per member, on the device of the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def rows(group: Mapping[str, Any], keys: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the `[K]` tensors of `group` under `keys`; those of `betas` are called `beta1` and `beta2`."""
    for key in keys:
        if key == "betas":
            yield "beta1", group[key][0]
            yield "beta2", group[key][1]
        else:
            yield key, group[key]


class StackedHyperparameters:
    """Copies of a group's numbers on the device of its parameters, updated if a schedule has set a new tensor.

    The copies stay the same tensors, so that a captured CUDA graph reads the latest values.

    Args:
        group: the parameter group; each number is a float64 tensor `[K]` on the CPU.
        keys: the numbers that the optimizer reads.
        device: the device of the parameters.

    Attributes:
        host: the group's tensors by name.
        table: their copies, `[names, K]`.
        device: its rows by name.
        betas: the copies of `beta1` and `beta2` as one tensor `[2, K]`.
    """

    def __init__(self, group: Mapping[str, Any], keys: Sequence[str], device: torch.device) -> None:
        self.keys = keys
        self.host: dict[str, Tensor] = dict(rows(group, keys))
        self.table = torch.stack(list(self.host.values())).to(device, torch.float64)
        self.device: dict[str, Tensor] = dict(zip(self.host, self.table.unbind(), strict=True))
        names = list(self.host)
        self.betas = self.table[names.index("beta1") : names.index("beta2") + 1] if "beta1" in names else self.table[:0]
        self._lists: dict[str, list[float]] = {}
        self._some: dict[str, bool] = {}
        self._every: dict[str, bool] = {}

    def refresh(self, group: Mapping[str, Any], *, copy: bool = True) -> set[str]:
        """Read the tensors that were replaced in `group`, and return their names.

        Args:
            group: the parameter group.
            copy: update the copies on the device.
        """
        changed = set()
        for name, value in rows(group, self.keys):
            if value is not self.host[name]:
                self.host[name] = value
                if copy:
                    self.device[name].copy_(value, non_blocking=True)
                for derived in (self._lists, self._some, self._every):
                    derived.pop(name, None)
                changed.add(name)
        return changed

    def copy_all(self) -> None:
        """Update all copies on the device."""
        self.table.copy_(torch.stack(list(self.host.values())))

    def of(self, name: str, member: int) -> float:
        """Return the number of one member."""
        if name not in self._lists:
            self._lists[name] = self.host[name].tolist()
        return self._lists[name][member]

    def some(self, name: str) -> bool:
        """Return whether the number is not 0 in at least one member. It is read on the CPU, without synchronization."""
        if name not in self._some:
            self._some[name] = bool(self.host[name].any())
        return self._some[name]

    def every(self, name: str) -> bool:
        """Return whether the number is not 0 in every member. It is read on the CPU, as in `some`."""
        if name not in self._every:
            self._every[name] = bool(self.host[name].all())
        return self._every[name]

    def runs(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Return the runs `[start, stop)` of adjacent members that are equal in all of `names`."""
        table = torch.stack([self.host[name] for name in names])
        breaks = (table[:, 1:] != table[:, :-1]).any(0).nonzero().flatten().tolist()
        edges = [0, *(edge + 1 for edge in breaks), table.shape[1]]
        return list(pairwise(edges))
