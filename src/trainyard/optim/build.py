"""Construction of the optimizer of a config, with the parameters of a model."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from trainyard.checks import choice, integer, number
from trainyard.config.build import build as config_build
from trainyard.config.build import is_node
from trainyard.errors import ConfigError
from trainyard.optim import without_dynamo
from trainyard.optim.fused_steps import SGD, SUBSTITUTES
from trainyard.optim.paramwise import Paramwise

log = logging.getLogger(__name__)

SMALL = 2**16
"""Largest parameter size for which `foreach` is faster than a loop on the CPU. From 2**18 numbers on, it was up to 5
times slower, measured on MLPs of 32 to 1024 units."""

_NUMBER = "a number of at least 0"
_ACCEPTED = {
    "lr": _NUMBER,
    "eps": _NUMBER,
    "weight_decay": _NUMBER,
    "momentum": _NUMBER,
    "betas": "two numbers of at least 0 and below 1",
    "nesterov": "false, or a momentum above 0 and a dampening of 0",
}
_SPELT = {"lr": "learning rate", "eps": "epsilon", "betas": "beta parameter", "weight_decay": "weight decay"}
"""Names of arguments in torch's messages, if they differ from the actual names."""


def from_config(node: Any, key: str = "optim") -> Any:
    """Return the partial that a config describes, or a mapping of partials; other values are returned unchanged.

    `paramwise`, which is not an argument of the optimizer's class, becomes an argument of the partial, from which
    `build` reads it.

    Raises:
        ConfigError: the config is invalid; the error has the key `key`.
    """
    if isinstance(node, Mapping) and not is_node(node):
        return {str(name): from_config(entry, f"{key}.{name}") for name, entry in node.items() if entry is not None}
    if not is_node(node) or "paramwise" not in node:
        return config_build(node, key)
    node = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    part = config_build({name: value for name, value in node.items() if name != "paramwise"}, key)
    return functools.partial(part, paramwise=node["paramwise"]) if callable(part) else part


def build(partial: Callable[..., Optimizer], params: Iterable[Any], model: nn.Module | None = None) -> Optimizer:
    """Build the optimizer on `params`.

    Fused SGD and Adagrad are the classes of `trainyard.optim.fused_steps`, which support all features of torch's
    default steps.

    Two arguments depend on the parameters. If torch rejects `fused=True` for their device or dtype, the optimizer is
    built without this argument, and a warning is logged. If a class has no fused kernels and `foreach` is None,
    `foreach` is set to True for small models on the CPU, for which torch would use a slower loop.

    Args:
        partial: the optimizer's class with its arguments, such as `functools.partial(torch.optim.Adam, lr=1e-3)`. The
            argument `paramwise`, with the arguments of a `Paramwise`, defines the parameter groups.
        params: parameters, `(name, parameter)` pairs, or parameter groups, as for torch's optimizers; with `paramwise`,
            parameters only.
        model: the model of the parameters, required for `paramwise`.

    Raises:
        ConfigError: the optimizer rejects one of its arguments; `key` is the argument's name, or empty if it is
            unknown.
    """
    given_rules = getattr(partial, "keywords", {}).get("paramwise")
    partial, rules = _split(partial)
    partial = _substituted(partial)
    listed = [_listed(item) for item in params]
    if rules is not None:
        if getattr(partial, "func", partial) is torch.optim.LBFGS:
            raise ConfigError("paramwise", given_rules, "null, because LBFGS does not support parameter groups")
        listed = _ruled(rules, partial, listed, model)
    optimizer = _construct(partial, listed)
    refusal = _refusal_of_fused(optimizer)
    if refusal is not None:
        log.warning("%s runs without fused=True: %s.", type(optimizer).__name__, refusal.rstrip("."))
        optimizer = _construct(functools.partial(partial, fused=None), listed)
    if _foreach_pays(optimizer):
        for numbers in (optimizer.defaults, *optimizer.param_groups):
            numbers["foreach"] = True
    return optimizer


def groups_of(partial: Any, params: Sequence[Any], model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups for parameters that join an optimizer later.

    Args:
        partial: the partial from which the optimizer was built, as for `build`; or the optimizer itself, which has no
            rules.
        params: parameters of the model.
        model: the model, which defines their names.
    """
    partial, rules = _split(partial)
    return [{"params": list(params)}] if rules is None else _ruled(rules, partial, params, model)


def _ruled(rules: Paramwise, partial: Callable[..., Optimizer], params: Sequence[Any], model: nn.Module | None) -> Any:
    """Return the groups that `paramwise` defines."""
    if model is None:
        raise TypeError("paramwise rules need the model: pass the argument `model` of trainyard.optim.build")
    numbers = _values(partial)
    base: Any = numbers.get("base")  # of SAM, whose groups are also those of its base
    try:
        groups = rules.groups(model, params, (_values(base) if callable(base) else {}) | numbers)
    except ConfigError as error:
        raise error.under("paramwise") from None
    for pattern in rules.patterns:
        options = rules.options(pattern)
        own = {name: value for name, value in options.items() if name in numbers}
        others = {name: value for name, value in options.items() if name not in numbers}
        for made, given in ((partial, own), (base, others)):
            if given:
                key = f"paramwise.custom_keys.{pattern}"
                config_build({"_target_": getattr(made, "func", made), "_partial_": True, **given}, key)
                try:  # torch checks the numbers of the optimizer, not those of a group
                    _construct(functools.partial(made, **given), [nn.Parameter(torch.zeros(1))])
                except ConfigError as error:
                    raise error.under(key) from None
    return groups


def _split(partial: Callable[..., Optimizer]) -> tuple[Callable[..., Optimizer], Paramwise | None]:
    """Return the partial without its `paramwise`, and the rules that `paramwise` describes."""
    if not isinstance(partial, functools.partial) or "paramwise" not in partial.keywords:
        return partial, None
    keywords = {key: value for key, value in partial.keywords.items() if key != "paramwise"}
    given = partial.keywords["paramwise"]
    partial = functools.partial(partial.func, *partial.args, **keywords)
    if not given or isinstance(given, Paramwise):
        return partial, given or None
    if not isinstance(given, Mapping):
        raise ConfigError("paramwise", given, "a mapping of rules, or null")
    return partial, config_build({"_target_": Paramwise, **given}, "paramwise")


def _substituted(partial: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Return the partial with the class that replaces torch's class if `fused=True`."""
    if not isinstance(partial, functools.partial) or not partial.keywords.get("fused"):
        return partial
    return functools.partial(SUBSTITUTES.get(partial.func, partial.func), *partial.args, **partial.keywords)


def _listed(item: Any) -> Any:
    """Return a parameter unchanged, a group with its parameters listed, because an iterator cannot be read twice."""
    if isinstance(item, dict) and isinstance(item.get("params"), Iterator):
        return {**item, "params": list(item["params"])}
    return item


def _construct(partial: Callable[..., Optimizer], params: list[Any]) -> Optimizer:
    # A constructor writes its defaults into the groups, and a second one may follow, so each gets copies.
    params = [dict(item) if isinstance(item, dict) else item for item in params]
    try:
        with without_dynamo.constructing():
            optimizer = partial(params)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        found = refusal(partial, error)
        if found is None:
            raise
        raise found from error
    check_numbers(optimizer)
    if type(optimizer) is torch.optim.LBFGS:
        _check_lbfgs(optimizer.defaults)
    return optimizer


def refusal(partial: Callable[..., Optimizer], error: Exception) -> ConfigError | None:
    """Return the error for an argument that an optimizer refuses; None if the arguments are not the cause.

    Args:
        partial: the optimizer's class with its arguments.
        error: the error that the class has raised.
    """
    name, keywords = _name(partial), getattr(partial, "keywords", {})
    key = _blamed(str(error), _defaults(partial), keywords)
    if key is None and not isinstance(error, ValueError):
        return None
    given = name if key is None else keywords.get(key, _defaults(partial).get(key))
    accepted = _ACCEPTED.get(key or "", f"{'arguments' if key is None else 'a value'} that {name} accepts")
    return ConfigError(key or "", given, accepted, hint=f"{name} says: {str(error).rstrip('.')}.")


def _check_lbfgs(given: Mapping[str, Any]) -> None:
    """Check the arguments of LBFGS, of which torch checks only the learning rate.

    Raises:
        ConfigError: a number is out of range, or the line search is unknown.
    """
    search = given["line_search_fn"]
    if search is not None:
        choice("line_search_fn", search, ("strong_wolfe",), other="null for steps of lr")
        number("lr", given["lr"], above=0)
    for name in ("max_iter", "max_eval", "history_size"):
        integer(name, given[name], at_least=1, other="null" if name == "max_eval" else "")
    for name in ("tolerance_grad", "tolerance_change"):
        number(name, given[name], at_least=0)


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether `optimizer.step` cannot be called without a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_numbers(optimizer: Optimizer) -> None:
    """Check that numbers are finite and that integers have at most 64 bits, which torch does not check.

    Raises:
        ConfigError: a number is infinite or NaN, or an integer is too large.
    """
    for group in optimizer.param_groups:
        for key, value in group.items():
            for each in value if isinstance(value, tuple | list) and key != "params" else (value,):
                if isinstance(each, float) and not math.isfinite(each):
                    raise ConfigError(key, value, "finite numbers" if each is not value else "a finite number")
                if isinstance(each, int) and not -(2**63) <= each < 2**63:
                    raise ConfigError(key, value, "an integer of at most 64 bits, or a float")


def _foreach_pays(optimizer: Optimizer) -> bool:
    """Return whether `foreach` is not set, torch would not use it, and it is faster (its temporaries fit into the
    cache)."""
    defaults = optimizer.defaults
    if "fused" in defaults or defaults.get("foreach", False) is not None or defaults.get("differentiable"):
        return False
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return all(param.device.type == "cpu" and param.numel() <= SMALL for param in params)


def _refusal_of_fused(optimizer: Optimizer) -> str | None:
    """Return why the fused kernels do not support the parameters of `optimizer`; None if they do, or are not requested.

    torch checks this only at the first step, so a step is run with one number of each kind of parameter.
    """
    if not optimizer.defaults.get("fused"):
        return None
    if isinstance(optimizer, SGD) and any(group["dampening"] != 0 for group in optimizer.param_groups):
        return "with dampening, the fused step fails if a parameter receives its first gradient later than others"
    kinds = {(param.device, param.dtype) for group in optimizer.param_groups for param in group["params"]}
    for device, dtype in kinds:
        probe = torch.zeros(1, device=device, dtype=dtype, requires_grad=dtype.is_floating_point or dtype.is_complex)
        if not probe.requires_grad:
            continue  # integers are never stepped
        probe.grad = torch.zeros_like(probe)
        try:
            with without_dynamo.constructing(), torch.no_grad():
                without_dynamo.method(type(optimizer)([probe], **_arguments(optimizer)), "step")()
        except RuntimeError as error:
            return str(error)
    return None


def _arguments(optimizer: Optimizer) -> dict[str, Any]:
    """Return the arguments with which `optimizer` was built: its defaults, except those that its class does not
    accept."""
    taken = inspect.signature(type(optimizer)).parameters
    return {key: value for key, value in optimizer.defaults.items() if key in taken}


def _blamed(message: str, defaults: Mapping[str, Any], keywords: Mapping[str, Any]) -> str | None:
    """Return the argument to which the error message of an optimizer refers."""
    if "unexpected keyword" in message:
        return None
    places = {}
    for key in {**defaults, **keywords}:
        found = re.search(rf"\b({re.escape(key)}|{_SPELT.get(key, key)})\b", message, re.IGNORECASE)
        if found:
            places[key] = found.start()
    if places:
        return min(places, key=places.__getitem__)
    # The message does not name the argument where a value is no number, or an integer too large for torch.
    odd = [
        key
        for key, value in keywords.items()
        if isinstance(value, str)
        or (value is None and defaults.get(key) is not None)
        or (isinstance(value, int) and abs(value) >= 2**63)
    ]
    return odd[0] if len(odd) == 1 else None


def _defaults(partial: Callable[..., Optimizer]) -> dict[str, Any]:
    taken = inspect.signature(getattr(partial, "func", partial)).parameters
    return {name: argument.default for name, argument in taken.items() if argument.default is not argument.empty}


def _values(partial: Callable[..., Optimizer]) -> dict[str, Any]:
    """Return the arguments of an optimizer with their values."""
    return _defaults(partial) | getattr(partial, "keywords", {})


def _name(partial: Callable[..., Optimizer]) -> str:
    made = getattr(partial, "func", partial)
    return getattr(made, "__name__", type(made).__name__)
