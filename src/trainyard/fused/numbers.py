"""Numbers of modules that differ between the members of a stack, such as a dropout probability, as tensors `[K]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainyard._torch_vmap import has_attention_parts

Place = tuple[str, str]
"""Path of a module, and the name of its attribute."""

_TAKES: dict[type[nn.Module], str] = {
    nn.Dropout: "p",
    nn.MultiheadAttention: "dropout",
    nn.CrossEntropyLoss: "label_smoothing",
}
"""Modules of torch that pass a number on to a function for which a stack has a rule (`StackedFunctions`)."""
_NAMES = ("dropout", "label_smoothing")
"""Names of such numbers in modules outside torch."""


class MemberNumbers:
    """The numbers of the modules of a stack that differ between members.

    Inside the forward pass, an attribute is a zero-dimensional tensor, which is the value of the member under
    `torch.vmap`.

    Args:
        places: the places of the numbers.
        models: the models of the members.
        code: the module whose code all members run.
        device: the device of the tensors.

    Attributes:
        stacks: the tensors by place, float64 `[K]`.
    """

    def __init__(
        self, places: Sequence[Place], models: Sequence[nn.Module], code: nn.Module, device: torch.device | None
    ) -> None:
        self._modules = {place: code.get_submodule(place[0]) for place in places}
        self.stacks = {
            place: torch.tensor([value_of(model, place) for model in models], dtype=torch.float64, device=device)
            for place in places
        }

    @contextmanager
    def held(self, values: Mapping[Place, Tensor]) -> Iterator[None]:
        """Let the code read these values inside the block."""
        held = [(vars(self._modules[place]), place[1], value) for place, value in values.items()]
        before = [attributes[name] for attributes, name, _ in held]
        for attributes, name, value in held:
            attributes[name] = value
        try:
            yield
        finally:
            for (attributes, name, _), value in zip(held, before, strict=True):
                attributes[name] = value

    def keep(self, index: Sequence[int]) -> None:
        """Keep only these members."""
        self.stacks = {place: stack[list(index)] for place, stack in self.stacks.items()}

    def put(self, k: int, model: nn.Module) -> None:
        """Copy the numbers of a model into lane `k`, in place."""
        for place, stack in self.stacks.items():
            stack[k] = value_of(model, place)

    def copy_to(self, model: nn.Module, source: nn.Module) -> None:
        """Copy the numbers of one member's model to another one."""
        for path, name in self.stacks:
            vars(model.get_submodule(path))[name] = value_of(source, (path, name))


def value_of(model: nn.Module, place: Place) -> float:
    """Return a number of a model."""
    value: float = vars(model.get_submodule(place[0]))[place[1]]
    return value


def number_places(models: Sequence[nn.Module], *, joinable: bool) -> list[Place]:
    """Return the places of numbers that differ between members and that the code accepts as tensors.

    Args:
        models: models of one architecture.
        joinable: other models may get lanes: their numbers may differ although those of these models do not.
    """
    modules = [dict(model.named_modules()) for model in models]
    found = []
    for path, first in modules[0].items():
        for name, value in vars(first).items():
            if type(value) is not float or any(path not in others for others in modules):
                continue
            values = [vars(others[path]).get(name) for others in modules]
            if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
                continue
            differs = any(each != value for each in values)
            if (differs and _takes_tensor(first, name)) or (joinable and value > 0 and _is_known(first, name)):
                found.append((path, name))
    return found


def _takes_tensor(module: nn.Module, name: str) -> bool:
    """Return whether a module accepts a number as a tensor; code outside torch may compute with either."""
    if isinstance(module, nn.MultiheadAttention) and not has_attention_parts():
        return False
    return _TAKES.get(type(module)) == name or not type(module).__module__.startswith("torch.")


def _is_known(module: nn.Module, name: str) -> bool:
    return _takes_tensor(module, name) and (type(module) in _TAKES or name in _NAMES)
