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

from trainyard.errors import nearest

log = logging.getLogger(__name__)

ALIKE = 0.8
"""Similarity, from 0 to 1, of a misspelled key to the key that was meant."""


def warn_of_unread(cfg: DictConfig, read: Collection[str]) -> None:
    """Log a warning, once for each key, for keys at the top level that nothing reads.

    These are the keys that the command line adds (`+optimm.lr=5`), and keys in files whose spelling is similar to that
    of a used key. Other keys in files may be used by code of the user.

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
        if key not in named and (key in added or get_close_matches(key, read, cutoff=ALIKE)):
            _warn_once(key, nearest(key, read))


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
def _warn_once(key: str, close: str | None) -> None:
    guess = f" Did you mean {close!r}?" if close is not None else ""
    log.warning("%s: this key is not used.%s", key, guess)
