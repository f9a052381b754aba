"""Guards of a captured step: checks of the values, other than the contents of tensors, that its code reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainyard._torch_internals import own_buffers, own_parameters

PLAIN = (bool, int, float, str)


class ModuleGuards:
    """Guards of the plain values of a model's modules (`training` among them) and of its tensors' addresses.

    A graph contains their values at the capture. Therefore, they are compared before every step; a captured step leaves
    the CPU enough time for this. A number in a CPU tensor is also a plain value.

    Args:
        modules: the modules, by name.
        device: the device of the graph.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self._modules = modules
        self._device = device
        self.take()

    def take(self) -> None:
        """Record the current values, for the comparison in `changed`."""
        self._values: list[tuple[dict[str, Any], str]] = []
        self._numbers: list[tuple[dict[str, Any], str]] = []
        self._tensors: list[tuple[Mapping[str, Any], str]] = []
        self._names: list[str] = []
        numbers, names = [], []
        for path, module in self._modules.items():
            for key, value in vars(module).items():
                if isinstance(value, PLAIN):
                    self._values.append((vars(module), key))
                    self._names.append(f"{path}.{key}".lstrip("."))
                elif isinstance(value, Tensor) and value.dim() == 0 and value.device.type != self._device.type:
                    self._numbers.append((vars(module), key))
                    numbers.append(f"{path}.{key}".lstrip("."))
            for tensors in (own_parameters(module), own_buffers(module)):
                for key, tensor in tensors.items():
                    if tensor is not None:
                        self._tensors.append((tensors, key))
                        names.append(f"{path}.{key}".lstrip("."))
        self._names += [*numbers, *names, *names]
        self._taken = self._read()

    def changed(self) -> str | None:
        """Return the name of something that differs from the record; None if nothing does."""
        try:
            found = self._read()
        except (KeyError, AttributeError):  # an attribute is missing, a buffer is None
            return "the set of attributes and tensors of the model"
        if found == self._taken:
            return None
        return next(name for name, a, b in zip(self._names, found, self._taken, strict=True) if a != b)

    def _read(self) -> list[Any]:
        values = [place[key] for place, key in self._values]
        tensors = [place[key] for place, key in self._tensors]
        numbers = [place[key].item() for place, key in self._numbers]
        return [*values, *numbers, *[t.data_ptr() for t in tensors], *[t.requires_grad for t in tensors]]
