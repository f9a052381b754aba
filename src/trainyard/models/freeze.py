"""Freezing of parameters by name pattern."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from trainyard.errors import ConfigError, counted, some
from trainyard.models.patterns import fits, pattern_list, unknown


def parse(patterns: Any) -> list[str]:
    """Return the patterns for `freeze` as a list; None means none.

    Raises:
        ConfigError: (under `freeze`) the value is not a list of strings.
    """
    return pattern_list("freeze", patterns)


def freeze(model: nn.Module, patterns: Sequence[str]) -> str:
    """Exclude from training the parameters that match a pattern.

    They have no gradients and are not passed to the optimizer. A module that matches a pattern itself, or whose
    parameters are all frozen, is kept in evaluation mode as long as none of its parameters is trained: the running
    statistics of its BatchNorm are used but not updated, and its dropout is inactive. `frozen_stages` of the OpenMMLab
    networks does the same; `norm_eval` does not freeze the parameters of BatchNorm. A module without parameters that
    matches a pattern itself (`Dropout`) is kept in evaluation mode until all parameters that its patterns froze are
    trained.

    Args:
        model: changed in place.
        patterns: globs for the full name of a module (`net.backbone`), which is frozen completely, for its class
            (`BatchNorm2d`), or for the full name of a parameter (`*.bias`).

    Returns:
        A summary of the frozen parts, for the log.

    Raises:
        ConfigError: `patterns` is not a list of strings, a pattern matches nothing, or no parameters remain to train.
    """
    patterns = parse(patterns)
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen, frozen = set[int](), set[int]()
    froze: dict[int, list[str]] = {}  # by module, the names of what its patterns freeze
    for pattern in patterns:
        fitting = [module for name, module in modules.items() if fits(pattern, name, module)]
        named = [parameter for name, parameter in parameters.items() if fits(pattern, name)]
        if not fitting and not named:
            raise unknown("freeze", pattern, modules, parameters)
        chosen.update(map(id, fitting))
        own = {id(parameter) for module in fitting for parameter in module.parameters()} | {id(each) for each in named}
        frozen |= own
        names = [name for name, each in parameters.items() if id(each) in own and each.requires_grad]
        for module in fitting:
            froze.setdefault(id(module), []).extend(names)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("freeze", patterns, "patterns that leave at least one parameter trainable")
    still = {}
    for name, module in modules.items():
        own = {id(parameter) for parameter in module.parameters()}
        if id(module) in chosen or (own and own <= frozen):
            still[name] = [] if own else froze[id(module)]
    # Set on the instance, as hooks and copies expect: a partial is copied along with its module. It holds the model,
    # and names of modules, because modules may be replaced later (BatchNorm by SyncBatchNorm).
    model.train = functools.partial(_train, model, still)  # type: ignore[method-assign]
    model.train(model.training)
    if not frozen:
        stay = f"{counted(len(still), 'module')} without parameters {'stays' if len(still) == 1 else 'stay'}"
        return f"Frozen: no parameters; {stay} in evaluation mode: {some(still, 3)}"
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    numbers = sum(sizes[each] for each in frozen)
    return f"Frozen: {len(frozen)} of {len(sizes)} parameters ({numbers} of {sum(sizes.values())} elements)"


def _train(model: nn.Module, still: Mapping[str, Sequence[str]], mode: bool = True) -> nn.Module:
    """Set the model's training mode, except for the modules that stay in evaluation mode.

    Args:
        model: the model.
        still: the modules by name; of one without parameters, the names of the parameters on which its mode depends.
        mode: whether the other modules are trained.
    """
    type(model).train(model, mode)
    for name, others in still.items():
        module = model.get_submodule(name)
        trained = any(parameter.requires_grad for parameter in module.parameters())  # some may be unfrozen by now
        if not trained and not (others and all(model.get_parameter(each).requires_grad for each in others)):
            module.train(False)
    return model


def unfreeze(model: nn.Module, patterns: Sequence[str], key: str = "unfreeze") -> list[str]:
    """Train the parameters that match a pattern: they get gradients, and their modules leave evaluation mode.

    Parameters that no optimizer contains must then be added to one, as `Runner.unfreeze` does.

    Args:
        model: changed in place.
        patterns: see `freeze`.
        key: the key of the patterns, for errors.

    Returns:
        The names of the parameters that were frozen before.

    Raises:
        ConfigError: `patterns` is not a list of strings, or a pattern matches no parameter.
    """
    changed = [name for name in fitting_parameters(model, patterns, key) if not model.get_parameter(name).requires_grad]
    for name in changed:
        model.get_parameter(name).requires_grad_(True)
    model.train(model.training)
    return changed


def fitting_parameters(model: nn.Module, patterns: Sequence[str], key: str) -> list[str]:
    """Return the names of the parameters that match a pattern, or are in a module that does, in the order of the model.

    Raises:
        ConfigError: (under `key`) the value is not a list of strings, or a pattern matches no parameter.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = set[int]()
    for pattern in pattern_list(key, patterns):
        fitting = [module for name, module in modules.items() if fits(pattern, name, module)]
        found = {id(parameter) for module in fitting for parameter in module.parameters()}
        found |= {id(each) for name, each in parameters.items() if fits(pattern, name)}
        if fitting and not found:
            raise ConfigError(
                key,
                pattern,
                "a pattern that matches parameters, but this pattern matches only modules without parameters",
            )
        if not found:
            raise unknown(key, pattern, modules, parameters)
        chosen |= found
    return [name for name, parameter in model.named_parameters() if id(parameter) in chosen]
