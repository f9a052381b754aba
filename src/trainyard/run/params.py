"""Params of a run in MLflow: settings that the user selected or that differ from the defaults."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainyard.config.build import is_node, locate
from trainyard.errors import ConfigError

ALWAYS = ("seed", "optim.lr", "data.batch_size", "loop.max_epochs", "loop.max_iters")
"""Settings that are params even if they have their default values."""
_UNSET: tuple[Any, ...] = (None, {}, [], "auto", "auto_or_null")


def flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings by key: `{"optim": {"lr": 0.1}}` gives `("optim.lr", "0.1")`; lists are not flattened."""
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from flat(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)


def below(key: str, keys: Iterable[str]) -> bool:
    """Return whether a setting is one of these, or within one of them."""
    return any(f"{key}.".startswith(f"{other}.") for other in keys)


def chosen(values: Mapping[str, Any], overridden: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that are params of a run, flat.

    These are the keys on the command line, `ALWAYS`, and every setting that differs from the default of its argument in
    the class or function of the `_target_`. Settings that are null, empty, `auto` or `_…_` are omitted.

    Args:
        values: the resolved config.
        overridden: the keys that the command line names.
        defaults: the defaults of the top-level settings.

    Example:
        >>> optim = {"_target_": "torch.optim.SGD", "lr": 0.001, "momentum": 0.9, "nesterov": False}
        >>> chosen({"optim": optim, "seed": 0}, ["optim.nesterov"], {"seed": 0})
        {'optim.lr': '0.001', 'optim.momentum': '0.9', 'optim.nesterov': 'False', 'seed': '0'}
    """
    return dict(_chosen(values, "", [*overridden], defaults))


def _chosen(
    value: Mapping[str, Any], key: str, overridden: list[str], defaults: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    for name, entry in value.items():
        place = f"{key}.{name}" if key else str(name)
        if below(place, [*overridden, *ALWAYS]):
            named = below(place, overridden)
            yield from ((each, text) for each, text in flat(entry, place) if named or text != "None")
        elif str(name).startswith("_"):
            continue
        elif isinstance(entry, Mapping) and entry:
            yield from _chosen(entry, place, overridden, _defaults(entry))
        elif entry not in _UNSET and not (name in defaults and _plain(defaults[name]) == _plain(entry)):
            yield place, str(entry)


def _defaults(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the arguments of a node's target."""
    if not is_node(node):
        return {}
    try:
        parameters = inspect.signature(locate(node["_target_"], "_target_")).parameters
    except (ConfigError, TypeError, ValueError):
        return {}
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
