"""Settings of a grid: paired values, several grids in one sweep, jobs from a file, conditional keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from trainyard.errors import ConfigError

ZIP = "hydra.sweeper.zip"
BLOCKS = "hydra.sweeper.blocks"
FILE = "hydra.sweeper.file"
WHEN = "hydra.sweeper.when"
CONDITION = "a condition of the form model=mlp, or model=mlp,cnn for one of these"


@dataclass(frozen=True)
class GridSettings:
    """Settings of a grid, with their forms checked.

    Attributes:
        zip: groups of keys whose values are paired.
        blocks: the overrides of each block.
        file: the path of the file of jobs; None for none.
        when: by key, the conditions (`model=mlp`, `model=mlp,cnn`) that must all hold for it to be a parameter.
    """

    zip: tuple[tuple[str, ...], ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    file: str | None = None
    when: Mapping[str, tuple[str, ...]] | None = None

    @classmethod
    def from_config(cls, zip: Any = None, blocks: Any = None, file: Any = None, when: Any = None) -> GridSettings:  # noqa: A002 - the setting's name
        """Return the settings in `hydra.sweeper`.

        Raises:
            ConfigError: a setting has another form.
        """
        if file is not None and not (isinstance(file, str) and file):
            raise ConfigError(FILE, file, "the path of a CSV file, or null")
        return cls(_zip(_plain(zip)), _blocks(_plain(blocks)), file, when_of(_plain(when)))


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _zip(value: Any) -> tuple[tuple[str, ...], ...]:
    if value is None:
        return ()
    groups = value if isinstance(value, list) else [value]
    if not groups or not all(isinstance(keys, list) and len(keys) > 1 for keys in groups):
        accepted = "a list of lists of at least two keys, such as [[optim.lr,data.batch_size]], or null"
        raise ConfigError(ZIP, value, accepted)
    found: list[str] = []
    for key in (key for keys in groups for key in keys):
        if not isinstance(key, str):
            raise ConfigError(ZIP, key, "a key, such as optim.lr")
        if key in found:
            raise ConfigError(ZIP, key, "keys that are not repeated")
        found.append(key)
    return tuple(tuple(keys) for keys in groups)


def _blocks(value: Any) -> tuple[tuple[str, ...], ...]:
    if value is None:
        return ()
    form = (
        "a list of blocks, or null. Each block is a mapping of keys to values ({model: mlp, seed: '0,1'}) or a list of "
        "overrides"
    )
    if not isinstance(value, list) or not value:
        raise ConfigError(BLOCKS, value, form)
    return tuple(_lines(block, form) for block in value)


def _lines(block: Any, form: str) -> tuple[str, ...]:
    if isinstance(block, dict) and all(isinstance(key, str) for key in block):
        return tuple(f"{key}={text_of(value)}" for key, value in block.items())
    if isinstance(block, list) and all(isinstance(line, str) for line in block):
        return tuple(block)
    raise ConfigError(BLOCKS, block, form)


def text_of(value: Any) -> str:
    """Return a value of a config as text for the command line; a string may list several values."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{text_of(each)}' for key, each in value.items())}}}"
    return str(value)


def when_of(value: Any) -> dict[str, tuple[str, ...]]:
    """Return `hydra.sweeper.when`, with its form checked.

    Raises:
        ConfigError: it has another form.
    """
    if value is None:
        return {}
    form = (
        "a mapping of keys to conditions ({model.hidden: 'model=mlp'}), or to lists of conditions, all of which must "
        "be true; or null"
    )
    if not isinstance(value, dict):
        raise ConfigError(WHEN, value, form)
    found = {}
    for key, conditions in value.items():
        texts = [conditions] if isinstance(conditions, str) else conditions
        if not isinstance(key, str) or not isinstance(texts, list) or not texts:
            raise ConfigError(WHEN, {key: conditions}, form)
        for text in texts:
            if not isinstance(text, str) or "=" not in text:
                raise ConfigError(f"{WHEN}.{key}", text, CONDITION)
        found[key] = tuple(texts)
    return found
