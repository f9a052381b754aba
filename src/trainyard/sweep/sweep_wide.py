"""Settings of Hydra that apply to an entire sweep, so that no job can have other values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf

from trainyard.config.config_files import at, read_config, sources_of
from trainyard.config.plain import plain
from trainyard.errors import ConfigError

SWEEP_WIDE = ("launcher", "sweeper", "sweep.dir", "callbacks")
"""Places in the `hydra` node that are read once, from the config of the sweep."""


def check_sweep_wide(config: DictConfig, sweep: DictConfig) -> None:
    """Check that a job's config agrees with the settings of its sweep, which apply to all jobs.

    They differ if a file that only some jobs select sets them, such as an experiment that is swept over.

    Args:
        config: the job's config.
        sweep: the config of the sweep.

    Raises:
        ConfigError: a setting differs; the message names the file.
    """
    mine, whole = _raw(config), _raw(sweep)
    for place in SWEEP_WIDE:
        own, common = at(mine, place), at(whole, place)
        if own != common:
            key, value, accepted = next(_differences(own, common, f"hydra.{place}"))
            parent, _, name = key.removeprefix("hydra.").rpartition(".")
            raise _error(config, key, value, accepted, is_new=name not in (at(whole, parent) or {}))


def _error(config: DictConfig, key: str, value: Any, common: Any, *, is_new: bool) -> ConfigError:
    hydra = config.hydra
    given = {entry.partition("=")[0].lstrip("+") for entry in filter_overrides(hydra.overrides.task)}
    choices: Any = OmegaConf.to_container(hydra.runtime.choices)
    files = [f"{group}/{option}" for group, option in choices.items() if option is not None and group in given]
    setting = [name for name in files if at(read_config(name, sources_of(hydra))[0], key) is not None]
    cause = f"{' or '.join(files) or 'An override of the job'} changes this key"
    if setting:
        cause = f"{setting[0]}.yaml sets this key"
    place = f"{'+' if is_new else ''}{key}"
    hint = f"{cause}, but the key applies to the entire sweep: set {place} to one value on the command line instead."
    accepted = "no value" if common is None else repr(common)
    return ConfigError(key, value, f"{accepted}, as for the entire sweep", hint=hint)


def _raw(config: DictConfig) -> Any:
    nodes = {name.partition(".")[0] for name in SWEEP_WIDE}
    return {name: plain(config.hydra._get_node(name)) for name in nodes}


def _differences(own: Any, common: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield each place at which two nodes differ, with both values."""
    if isinstance(own, Mapping) and isinstance(common, Mapping):
        for name in {**own, **common}:
            if own.get(name) != common.get(name):
                yield from _differences(own.get(name), common.get(name), f"{key}.{name}")
    else:
        yield key, own, common
