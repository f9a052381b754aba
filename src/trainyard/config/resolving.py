"""Resolution of configs: interpolations are replaced by their values, in plain Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.config.plain import children, is_open, plain
from trainyard.errors import ConfigError, first_line

_OF_HYDRA = re.compile(r"\$\{hydra:([a-z_]+(?:\.[a-z_]+)*)\}")
_READ = {"mode": "train", "quick": False, "name": None}  # settings that a command reads, with their defaults
_PLAIN = bool | int | float | str | None


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return a composed config in plain Python, without Hydra's own node, and with `mode`, `quick` and `name`.

    Raises:
        ConfigError: an interpolation does not resolve.
    """
    values = {str(key): resolved(cfg, key, node) for key, node in children(cfg).items() if key != "hydra"}
    return values | {name: default for name, default in _READ.items() if name not in values}


def resolved(cfg: DictConfig, key: Any, node: Node | None = None) -> Any:
    """Return a value in plain Python, which is read many times faster: a sweep checks thousands of configs.

    Args:
        cfg: the config.
        key: the key of the value.
        node: the node of the value, if known.

    Raises:
        ConfigError: an interpolation in it does not resolve.
    """
    if node is not None and not is_open(written := plain(node)):
        return written
    try:
        if OmegaConf.is_missing(cfg, key):
            return "???"
        hydras = _OF_HYDRA.fullmatch(str(written)) if node is not None and HydraConfig.initialized() else None
        hydra: Any = HydraConfig.get() if hydras else None
        # As the resolver does, without parsing the interpolation each time.
        value = OmegaConf.select(hydra, hydras[1]) if hydras else cfg[key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise _explained(cfg, str(key), error) from error


def replaced(cfg: Mapping[Any, Any] | DictConfig, others: Mapping[str, Any]) -> Mapping[Any, Any]:
    """Return a config with other values under some keys; interpolations that refer to these keys use the new values.

    Args:
        cfg: the config, which is not changed. A plain mapping can also contain interpolations if it contains no
            objects.
        others: the values by key. An object that a config cannot contain is replaced by null.

    Raises:
        ConfigError: `cfg` is not a mapping.
    """
    if not isinstance(cfg, Mapping | DictConfig):
        raise ConfigError("cfg", cfg, "a config that Hydra or OmegaConf has composed, or a mapping")
    if not isinstance(cfg, DictConfig):
        if not (_is_plain(cfg) and "${" in repr(cfg)):
            return {str(key): value for key, value in cfg.items()} | dict(others)
        cfg = OmegaConf.create(dict(cfg))
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    own = {key: value if _is_plain(value) else None for key, value in others.items()}
    return OmegaConf.create({str(key): value for key, value in written.items()} | own, flags={"allow_objects": True})


def _is_plain(value: Any) -> bool:
    """Return whether a value can be written to a file completely."""
    if OmegaConf.is_config(value):
        return True
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _explained(cfg: DictConfig, key: str, error: OmegaConfBaseException) -> ConfigError:
    """Return the error for an interpolation that does not resolve."""
    full = str(getattr(error, "full_key", "") or "") or key
    given = _written(cfg, full)
    said = first_line(error).rstrip(".")
    hint = f"{said}."
    if "${hydra:" in str(given) and not HydraConfig.initialized():
        hint = f"{said}: ${{hydra:…}} has a value only in a Hydra application (hydra.main)."
    elif "Unsupported interpolation type" in said:
        hint = f"{said}. Register the resolver with OmegaConf.register_new_resolver before the config is used."
    return ConfigError(full, given, "an interpolation that can be resolved", hint=hint)


def _written(cfg: DictConfig, key: str) -> Any:
    """Return a value as it is written in the config."""
    value: Any = OmegaConf.to_container(cfg, resolve=False)
    for part in key.replace("[", ".").replace("]", "").split("."):
        try:
            value = value[int(part) if isinstance(value, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return "an interpolation"
    return value
