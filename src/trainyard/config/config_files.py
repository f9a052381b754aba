"""Config files before Hydra merges them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from trainyard.config.plain import plain

Sources = tuple[tuple[str, str], ...]
"""Places in which files are searched, in order: each is a schema (`file` or `pkg`) and a path."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def sources_of(hydra: Any) -> Sources:
    """Return the sources of a composition, from Hydra's own node."""
    found: Any = plain(hydra.runtime._get_node("config_sources"))
    return tuple((str(source["schema"]), str(source["path"])) for source in found)


def read_config(name: str, sources: Sources) -> tuple[dict[str, Any], str]:
    """Return the content of a file (`model/mlp`) and its text; both are empty if it is missing."""
    for schema, path in sources:
        folder = Path(path) if schema == "file" else resources.files(path) if schema == "pkg" and path else None
        file = None if folder is None else folder.joinpath(*f"{name}.yaml".split("/"))
        if file is not None and file.is_file():
            text = file.read_text(encoding="utf-8")
            content: Any = yaml.load(text, Loader=_LOADER)
            return (content, text) if isinstance(content, dict) else ({}, text)
    return {}, ""


def at(content: Any, key: str) -> Any:
    """Return the value at a key (`hydra.launcher.max_jobs`); None if there is none."""
    for name in key.split("."):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content
