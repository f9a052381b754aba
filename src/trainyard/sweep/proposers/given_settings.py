"""Settings of a sweeper that proposes, as they are given in `hydra.sweeper`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainyard.checks import seed_number
from trainyard.config.sweepers import NOT_IN_SEARCH, SETTINGS, hint_for
from trainyard.errors import ConfigError

SWEEPER = "hydra.sweeper"
SEED = "seed"


def given_settings(given: Mapping[str, Any], option: str) -> dict[str, Any]:
    """Return the settings in plain Python.

    Args:
        given: the content of `hydra.sweeper`. For a search, it may contain settings of Hydra's Optuna plugin that are
            null.
        option: the option of `hydra/sweeper`.

    Raises:
        ConfigError: a setting is unknown.
    """
    values, known = {key: plain(value) for key, value in given.items()}, SETTINGS[option]
    for key, value in values.items():
        hint = hint_for(key, option)
        if option == "search" and key in NOT_IN_SEARCH:
            if value is not None:
                raise ConfigError(f"{SWEEPER}.{key}", value, "null", hint=hint)
        elif key not in known:
            accepted = f"a setting of hydra/sweeper={option}: {', '.join(known)}"
            raise ConfigError(SWEEPER, key, accepted, options=() if hint else known, hint=hint)
    return values


def plain(value: Any) -> Any:
    """Return a setting in plain Python."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def mapping_of(name: str, value: Any, form: str) -> Mapping[str, Any]:
    """Return a setting that is a mapping; None is an empty one.

    Args:
        name: the name of the setting.
        value: the given value.
        form: the accepted form, for the message.

    Raises:
        ConfigError: it is something else.
    """
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{SWEEPER}.{name}", value, f"{form}, or null")
    return value or {}


def params_of(value: Any) -> Mapping[str, Any]:
    """Return `hydra.sweeper.params`: the texts of overrides by key.

    Raises:
        ConfigError: it has another form.
    """
    found = mapping_of("params", value, "a mapping: {optim.lr: 'tag(log,interval(1e-5,1e-1))'}")
    for key, own in found.items():
        if isinstance(own, dict):
            hint = "Write keys with dots: optim.lr."
            raise ConfigError(f"{SWEEPER}.params.{key}", own, "a value in override syntax", hint=hint)
    return found


def first_seed(fixed: Mapping[str, Any], config: DictConfig) -> int | None:
    """Return the `seed` of the command line, otherwise that of the config; None if there is none.

    Args:
        fixed: the keys with a single value, from the space.
        config: the config of the entire sweep.

    Raises:
        ConfigError: it is not a seed.
    """
    given = fixed.get(SEED)
    if given is None:
        given = OmegaConf.select(config, SEED, throw_on_resolution_failure=False)
    if given is None:
        return None
    return seed_number(SEED, int(given) if isinstance(given, str) and given.isdecimal() else given)
