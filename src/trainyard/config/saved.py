"""Configs that were saved as YAML."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from omegaconf import DictConfig, OmegaConf

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


def saved_config(text: str) -> DictConfig:
    """Return the config in the content of a file; an empty config if the content is no mapping."""
    try:
        content = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError:
        content = None
    return OmegaConf.create(content if isinstance(content, dict) else {})


def value_text(config: DictConfig, key: str) -> str | None:
    """Return the value of a key, with dots, as Python writes it; None if there is none, or if it is a mapping."""
    missing = object()
    try:
        value: Any = OmegaConf.select(config, key, default=missing, throw_on_resolution_failure=False)
        if OmegaConf.is_list(value):
            return str(OmegaConf.to_container(value, resolve=True))
    except Exception:  # such as a key below a list, or an interpolation in a list
        return None
    return None if value is missing or OmegaConf.is_config(value) else str(value)
