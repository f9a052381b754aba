"""Arguments of the Runner in a composed config."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trainyard.config.resolving import resolved
from trainyard.errors import ConfigError

_GROUPS = {"hook": "hooks", "metric": "metrics"}
"""Groups of the config whose arguments have other names."""


def arguments(cfg: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """Return the resolved entries of a composed config that are arguments of the Runner, under their names.

    Raises:
        ConfigError: an interpolation does not resolve.
    """
    taken = _taken()
    keys = sorted(cfg, key=lambda key: key != "work_dir")  # first, since others refer to it
    names = {key: name for key in keys if (name := _GROUPS.get(str(key), str(key))) in taken}
    try:
        values = {
            name: resolved(cfg, key) if isinstance(cfg, DictConfig) else cfg[str(key)] for key, name in names.items()
        }
    except ConfigError as error:
        if error.key != "work_dir":
            raise
        how = "Pass a directory with Runner.from_cfg(cfg, work_dir=…), or None for a run that writes nothing."
        raise ConfigError("work_dir", error.given, "the directory of the run", hint=how) from error
    return {"model": None} | values


@cache
def _taken() -> list[str]:
    from trainyard.runner.runner import Runner

    return [name for name in Runner.__init__.__annotations__ if name != "return"]


def directory(given: object) -> Path | None:
    """Return the directory of a run; None for a run that writes nothing.

    Raises:
        ConfigError: the value is not a path.
    """
    if given is None:
        return None
    if not isinstance(given, str | Path) or not str(given).strip():
        raise ConfigError("work_dir", given, "the path of a directory, or null for a run that writes nothing")
    return Path(given)


def as_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments under the names of the Runner; names of groups are also accepted.

    Raises:
        ConfigError: the Runner has no such argument.
    """
    for name in given:
        if _GROUPS.get(name, name) not in _taken():
            accepted = f"the group {' or '.join(_GROUPS)}, or an argument of the Runner: {', '.join(_taken())}"
            raise ConfigError("Runner.from_cfg", name, accepted, options=[*_taken(), *_GROUPS])
    return {_GROUPS.get(key, key): value for key, value in given.items()}


def as_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments under the names that they have in a config."""
    keys = {name: key for key, name in _GROUPS.items()}
    return {keys.get(name, name): value for name, value in given.items()}
