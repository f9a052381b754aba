"""Rules for initial values of parameters, by module name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from trainyard._torch_internals import own_parameters
from trainyard.checks import is_number
from trainyard.config.build import build, check_node, is_node
from trainyard.errors import ConfigError, quoted
from trainyard.models.patterns import fits, unknown

Initializer = Callable[[Tensor], Any]

NAMES = tuple(name[:-1] for name in dir(nn.init) if name.endswith("_") and not name.startswith("_"))
"""Functions of `torch.nn.init`: kaiming_normal, trunc_normal, constant, orthogonal, …"""


def parse(rules: Any) -> dict[str, dict[str, Initializer]]:
    """Return the rules for `initialize`: by pattern, then by the parameter's own name.

    Raises:
        ConfigError: (under `init`) the rules are invalid, an initializer is unknown, or does not accept these
            arguments.
    """
    rules = OmegaConf.to_container(rules, resolve=True) if OmegaConf.is_config(rules) else rules
    if not isinstance(rules, Mapping | None):
        raise ConfigError("init", rules, "a mapping from patterns for modules to initializers, or null")
    found = {}
    for pattern, rule in (rules or {}).items():
        key = f"init.{pattern}"
        if isinstance(rule, Mapping) and not is_node(rule):
            found[str(pattern)] = {str(leaf): _initializer(each, f"{key}.{leaf}") for leaf, each in rule.items()}
        elif rule is not None:
            found[str(pattern)] = {
                "weight": _initializer(rule, key, ", or a mapping from names of parameters to these")
            }
    return found


@torch.no_grad()
def initialize(model: nn.Module, rules: Mapping[str, Any]) -> str:
    """Give parameters of `model` new initial values, drawn from torch's global generator.

    A rule is an initializer for the `weight` of the modules that match its pattern, or a mapping from names of their
    own parameters to initializers. An initializer is a number; the name of a function of `torch.nn.init`, with or
    without its last underscore; or a mapping with `_target_` (such a name or a dotted path) and its arguments. If
    several rules match a parameter, the last one applies. Parameters that a module does not have (`bias=False`) are
    skipped.

    Args:
        model: changed in place.
        rules: by pattern: a glob for the full name of a module (`net.blocks.*`), or for its class (`Conv2d`).

    Returns:
        A count of the initialized parameters, for the log.

    Raises:
        ConfigError: (under `init`) a rule is invalid, a pattern matches no module, the matching modules have no
            parameter with a name, or an initializer does not support the shape of a parameter.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> small = {"_target_": "normal", "std": 0.0}
        >>> initialize(net, {"Linear": {"weight": "xavier_uniform", "bias": 0}, "2": small})
        'Initialized by rules: 4 of 4 parameters'
        >>> net[2].weight.abs().sum().item()
        0.0
    """
    modules = dict(model.named_modules())
    chosen: dict[int, tuple[nn.Parameter, Initializer, str, str]] = {}
    for pattern, by_leaf in parse(rules).items():
        fitting = {name: module for name, module in modules.items() if fits(pattern, name, module)}
        if not fitting:
            raise unknown("init", pattern, modules)
        leaves = dict.fromkeys(leaf for module in fitting.values() for leaf in own_parameters(module))
        if not leaves and by_leaf:
            raise ConfigError("init", pattern, "a glob that matches modules with parameters of their own")
        for leaf, initializer in by_leaf.items():
            if leaf not in leaves:
                accepted = f"a parameter of the modules that match {quoted(pattern)}: {', '.join(leaves)}"
                hint = "A rule without the name of a parameter is for weight." if leaf == "weight" else ""
                raise ConfigError(f"init.{pattern}", leaf, accepted, options=leaves, hint=hint)
            for name, module in fitting.items():
                parameter = own_parameters(module).get(leaf)
                if parameter is not None:
                    chosen[id(parameter)] = parameter, initializer, f"init.{pattern}", f"{name}.{leaf}".lstrip(".")
    for parameter, initializer, key, name in chosen.values():
        try:
            initializer(parameter)
        except (TypeError, ValueError, RuntimeError) as error:
            accepted = f"an initializer that works for {name} {list(parameter.shape)}, which matches the pattern"
            raise ConfigError(
                key, _named(initializer), accepted, hint=f"The error is: {str(error).rstrip('.')}."
            ) from error
    return f"Initialized by rules: {len(chosen)} of {len(list(model.parameters()))} parameters"


def _initializer(given: Any, key: str, other: str = "") -> Initializer:
    if is_number(given, finite=False):
        return partial(nn.init.constant_, val=float(given))
    node = {"_target_": given} if isinstance(given, str) else given
    if not is_node(node):
        raise ConfigError(key, given, f"a number, the name of an initializer, or a mapping with `_target_`{other}")
    target = node["_target_"]
    if isinstance(target, str) and "." not in target:
        if target.removesuffix("_") not in NAMES:
            accepted = f"a dotted path, or one of {', '.join(NAMES)}"
            raise ConfigError(key, target, accepted, options=NAMES)
        node = {**node, "_target_": f"torch.nn.init.{target.removesuffix('_')}_"}
    check_node(node, key, positional=1)
    made: Initializer = build({**node, "_partial_": True}, key)
    return made


def _named(initializer: Initializer) -> str:
    function: Any = getattr(initializer, "func", initializer)
    return getattr(function, "__name__", str(function))
