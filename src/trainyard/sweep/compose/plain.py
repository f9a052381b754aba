"""Plain Python, as `trainyard.config.plain` gives it, put into a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, flag_override

from trainyard.config.hydra_versions import is_tuple
from trainyard.config.plain import plain


def assign(node: DictConfig | ListConfig, values: Any) -> None:
    """Set a config to values in the form of `trainyard.config.plain.plain`; those that are equal stay untouched.

    Args:
        node: changed in place, even if it is read-only.
        values: a mapping or a list, as the config is.
    """
    content = vars(node)["_content"]
    if isinstance(content, dict):
        for key in [key for key in content if key not in values]:
            with flag_override(node, ["readonly", "struct"], False):
                del node[key]
    elif len(content) != len(values):
        with flag_override(node, ["readonly", "struct"], False):
            del node[:]  # type: ignore[arg-type]
            node.extend(values)
        return
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        child = content[key] if isinstance(content, list) else content.get(key)
        inside = {} if child is None else vars(child)
        if "_val" in inside and not isinstance(value, Mapping | list | tuple):
            inside["_val"] = value
        elif _is_like(child, inside.get("_content"), value):
            assign(child, value)
        elif child is None or plain(child) != value:
            with flag_override(node, ["readonly", "struct"], False):
                node[key] = value


def _is_like(node: Any, content: Any, value: Any) -> bool:
    """Return whether a node can become this value entry by entry; a tuple is replaced completely."""
    if isinstance(content, dict):
        return isinstance(value, Mapping)
    return isinstance(content, list) and isinstance(value, list) and not is_tuple(node)
