"""YAML that loads as that of `OmegaConf.to_yaml` does, written many times faster."""

from __future__ import annotations

from enum import Enum
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from omegaconf._utils import get_omega_conf_dumper


def yaml_text(value: Any) -> str:
    """Return a value of a config, in plain Python, as YAML; an enum as its name, as Hydra and OmegaConf write it."""
    text: str = yaml.dump(_named(value), default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=_DUMPER)
    return text


def _named(value: Any) -> Any:
    """Replace each enum by its name, as Hydra does."""
    if isinstance(value, dict):
        return {key: _named(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_named(entry) for entry in value]
    return value.name if isinstance(value, Enum) else value


def _dumper() -> Any:
    """Return OmegaConf's dumper, on libyaml if that is available."""
    slow = get_omega_conf_dumper()
    if not hasattr(yaml, "CDumper"):
        return slow
    fast = type("Dumper", (yaml.CDumper,), {})
    fast.yaml_representers = slow.yaml_representers  # type: ignore[attr-defined]
    fast.yaml_multi_representers = slow.yaml_multi_representers  # type: ignore[attr-defined]
    return fast


_DUMPER = _dumper()
