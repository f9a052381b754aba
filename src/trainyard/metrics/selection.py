"""Selection of what a metric reads: a part of the outputs, and a target of the batch, by their paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainyard.errors import ConfigError, TrainyardError, counted, quoted

SHOWN = 12  # entries in a description


def path_of(key: str, given: Any) -> str | None:
    """Return a path such as `logits`, `labels.kind` or `0`, after a check.

    Raises:
        ConfigError: it is not a path.
    """
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return str(given)
    if not isinstance(given, str) or not all(given.split(".")):
        raise ConfigError(key, given, "a path of keys, attributes and indices, such as logits, labels.kind or 0")
    return given


def select(value: Any, path: str, of: str, key: str = "") -> Any:
    """Return the part of a value at a path of keys of mappings, indices of sequences, or attributes.

    Args:
        value: outputs of a model, or a batch.
        path: names between dots.
        of: the name of the value, for the message.
        key: the key of the path in the config, for the message.

    Raises:
        TrainyardError: the value has no such part.
    """
    found = value
    for name in path.split("."):
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list | tuple) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif not isinstance(found, Mapping | Tensor) and hasattr(found, name):
            found = getattr(found, name)
        else:
            where = f"{key}: " if key else ""
            raise TrainyardError(f"{where}There is no {quoted(path)} in the {of}. The value is {described(value)}.")
    return found


def described(value: Any) -> str:
    """Describe outputs or a target by kinds and shapes: `a dict of logits [8, 2] float32, hidden [8, 16] float32`."""
    if isinstance(value, Tensor):
        return f"a tensor {_short(value)}"
    if isinstance(value, Mapping):
        entries = [f"{name} {_short(entry)}" for name, entry in list(value.items())[:SHOWN]]
        return f"a {type(value).__name__} of {', '.join(entries)}" if entries else f"an empty {type(value).__name__}"
    if isinstance(value, list | tuple):
        entries = [_short(entry) for entry in value[:3]]
        more = ", …" if len(value) > 3 else ""
        if not entries:
            return f"an empty {type(value).__name__}"
        return f"a {type(value).__name__} with {counted(len(value), 'element')} ({', '.join(entries)}{more})"
    return f"a {type(value).__name__}"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(map(str, list(value)[:SHOWN]))}}}"
    return type(value).__name__
