"""Layers of a model, counted from its input: for learning rates that decay from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from trainyard.errors import ConfigError
from trainyard.models.patterns import above_all, fits_within


def layer_numbers(model: nn.Module, layers: Sequence[str] | None) -> tuple[dict[str, int], int]:
    """Return for each parameter's name the number of its layer, and the highest of these numbers.

    The layers are numbered from 1. Modules before the layers (embeddings) have the number 0. Modules after the layers
    (the last norm, the head) have the highest number: that of the last layer plus one.

    Args:
        model: the model; the order is that of its `named_parameters`.
        layers: globs for the layers' modules, in order; None: the elements of the `ModuleList` or `Sequential` of
            several modules that contains the most parameters, such as the blocks of a transformer.

    Raises:
        ConfigError: a glob matches no parameter, or the model has no such list.
    """
    names = [name for name, _ in model.named_parameters()]
    found: dict[str, int] = {}
    for number, fits in enumerate(_matchers(model, names, layers), 1):
        for name in names:
            if name not in found and fits(name):
                found[name] = number
    last = max(found.values()) + 1
    before = names.index(next(iter(sorted(found, key=names.index))))
    return {name: found.get(name, 0 if place < before else last) for place, name in enumerate(names)}, last


def _matchers(model: nn.Module, names: Sequence[str], layers: Sequence[str] | None) -> list[Callable[[str], bool]]:
    """Return, for each layer, a function that tells whether it contains the parameter with a name."""
    if layers is None:
        stack = _stack(model)
        children = model.get_submodule(stack).named_children()
        return [partial(_begins, f"{stack}.{name}." if stack else f"{name}.") for name, _ in children]
    for pattern in layers:
        if not any(fits_within(pattern, name) for name in names):
            accepted = "a glob that matches a module with parameters"
            raise ConfigError("layers", pattern, accepted, options=above_all(names))
    return [partial(fits_within, pattern) for pattern in layers]


def _begins(beginning: str, name: str) -> bool:
    return name.startswith(beginning)


def _stack(model: nn.Module) -> str:
    """Return the name of the list of modules that contains the most parameters."""
    sizes = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and sum(any(True for _ in child.parameters()) for child in module.children()) > 1
    }
    if not sizes:
        raise ConfigError(
            "layers",
            None,
            f"globs that match the layers, because {type(model).__name__} has no ModuleList or Sequential of several "
            "modules with parameters",
        )
    largest: str = max(sizes, key=sizes.__getitem__)
    return largest
