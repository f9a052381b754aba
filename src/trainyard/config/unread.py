"""Keys at the top level of a config that nothing reads."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import nearest, quoted

log = logging.getLogger(__name__)

ALIKE = 0.8
"""Similarity, from 0 to 1, of a misspelled key to the key that was meant."""


def warn_of_unread(cfg: DictConfig, read: Collection[str]) -> None:
    """Log a warning, once for each key, for keys at the top level that nothing reads.

    These are the keys that the command line adds (`+optimm.lr=5`), keys in files whose spelling is similar to that of
    a used key, and the groups of selected files that contain used keys but lack `# @package _global_`. Other keys in
    files may be used by code of the user.

    Args:
        cfg: the config, with Hydra's own node if there is one.
        read: the keys that the application reads.
    """
    own = [str(key) for key in cfg if key != "hydra" and key not in read]
    if not own:
        return
    named = set(_named_in_interpolations(OmegaConf.to_container(cfg)))
    added = {re.split(r"[=.@]", entry.lstrip("+"))[0] for entry in _added()}
    for key in own:
        if key in named:
            continue
        if key in added or get_close_matches(key, read, cutoff=ALIKE):
            close = nearest(key, read)
            _warn_once(key, f" Did you mean {quoted(close)}?" if close is not None else "")
    for place, file, keys in _misplaced(cfg, {*own} - named, read):
        _warn_once(
            f"{place}.{keys[0]}",
            f" To set {', '.join(keys)} at the top level of the config, write '# @package _global_' in the first line "
            f"of {file}.yaml.",
        )


def _misplaced(cfg: DictConfig, own: Collection[str], read: Collection[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the place of each selected file below one of the unread keys, the file, and the used keys in it."""
    choices: Any = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    for group, option in choices.items():
        if not option or "@" in group:
            continue
        file = f"{group}/{option}"
        place = file.rpartition("/")[0].replace("/", ".")
        node = OmegaConf.select(cfg, place) if place.partition(".")[0] in own else None
        keys = [str(key) for key in node if key in read] if isinstance(node, DictConfig) else []
        if keys:
            yield place, file, keys


def _added() -> list[str]:
    """Return the overrides of the current job that add a key."""
    overrides: Any = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return [str(entry) for entry in overrides if str(entry).startswith("+")]


def _named_in_interpolations(value: Any) -> Iterator[str]:
    """Yield every word in the interpolations of a config."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _named_in_interpolations(entry)
    elif isinstance(value, str) and "${" in value:
        yield from re.findall(r"\w+", value)


@functools.cache
def _warn_once(key: str, hint: str) -> None:
    log.warning("%s: this key is not used.%s", key, hint)
