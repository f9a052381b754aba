"""Configs that were saved as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import TrainyardError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


def saved_config(text: str) -> DictConfig:
    """Return the config in the content of a file; an empty config if the content is no mapping."""
    try:
        content = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError:
        content = None
    return OmegaConf.create(content if isinstance(content, dict) else {})


def saved_values(file: Path) -> dict[str, Any]:
    """Return the mapping in a file, in plain Python.

    Raises:
        TrainyardError: the file cannot be read, or contains no mapping.
    """
    try:
        content: Any = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
    except OSError as error:
        raise TrainyardError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise TrainyardError(f"{file} cannot be read: {said}.") from error
    if not isinstance(content, dict):
        raise TrainyardError(f"{file} cannot be read: it contains no mapping of keys to values.")
    return content


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
