"""Config as plain Python with unresolved interpolations: like `OmegaConf.to_container`, but faster."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, Node

from trainyard.config.hydra_versions import is_tuple


def plain(node: Node) -> Any:
    """Return the value of a node of a config, with all values below it."""
    inside = vars(node)
    if "_val" in inside:
        return inside["_val"]
    content = inside["_content"]
    if isinstance(content, dict):
        return {key: plain(child) for key, child in content.items()}
    if isinstance(content, list):
        entries = [plain(child) for child in content]
        return tuple(entries) if is_tuple(node) else entries
    return plain(content) if isinstance(content, Node) else content  # of a union; None, or an interpolation


def children(node: DictConfig) -> dict[Any, Node]:
    """Return the nodes of a mapping that is not an interpolation, by key."""
    found: dict[Any, Node] = vars(node)["_content"]
    return found


def is_open(value: Any) -> bool:
    """Return whether a value, in the form of `plain`, contains an interpolation or a missing value."""
    if isinstance(value, str):
        return "${" in value or value == "???"
    if isinstance(value, dict):
        return any(map(is_open, value.values()))
    return isinstance(value, list | tuple) and any(map(is_open, value))
