"""Config of a sweep with the values that all its jobs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from trainyard.sweep.conditions import is_in
from trainyard.sweep.grid import effective, key_of
from trainyard.sweep.grid_settings import text_of, when_of
from trainyard.sweep.proposers.given_settings import params_of, plain
from trainyard.sweep.proposers.space import fixed_line


def of_search(
    given: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader, config: DictConfig
) -> DictConfig:
    """Return the config of a sweep with the overrides of `hydra.sweeper.params`, and those that list a single value.

    Hydra's config of a sweep contains neither. Overrides with conditions (`hydra.sweeper.when`) are omitted.

    Args:
        given: the settings in `hydra.sweeper`.
        arguments: the overrides of the command line.
        loader: Hydra's loader.
        config: the config of the entire sweep.

    Raises:
        ConfigError: `params`, `when` or an override is invalid.
        HydraException: an override cannot be parsed.
    """
    return _composed([line for _, line in _lines(given, arguments, loader) if line], loader, config)


def varying_in_search(given: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader) -> set[str]:
    """Return the keys that differ between the jobs of a search, or that only some of them have.

    Args:
        given, arguments, loader: see `of_search`.

    Raises:
        ConfigError: `params`, `when` or an override is invalid.
        HydraException: an override cannot be parsed.
    """
    return {key for key, line in _lines(given, arguments, loader) if line is None}


def _lines(given: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader) -> list[tuple[str, str | None]]:
    """Return the overrides, each with its key; None if it has several values or a condition."""
    lines = [*(f"{key}={text_of(value)}" for key, value in params_of(plain(given.get("params"))).items()), *arguments]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(lines)
    kept = effective(parsed, lambda key: bool(loader.get_group_options(key)))
    conditional = tuple(when_of(plain(given.get("when"))))
    return [
        (key_of(each), None if any(is_in(key_of(each), node) for node in conditional) else fixed_line(each))
        for each in kept
    ]


def of_jobs(jobs: Sequence[Sequence[str]], loader: ConfigLoader, config: DictConfig) -> DictConfig:
    """Return the config of a sweep with the overrides that all its jobs share.

    Args:
        jobs: the overrides of each job.
        loader: Hydra's loader.
        config: the config of the entire sweep.
    """
    common = _common(jobs)
    return _composed([line for line in jobs[0] if line in common] if jobs else [], loader, config)


def varying_in_jobs(jobs: Sequence[Sequence[str]]) -> set[str]:
    """Return the keys that differ between jobs.

    Args:
        jobs: the overrides of each job.
    """
    common = _common(jobs)
    return {line.partition("=")[0].lstrip("+~") for job in jobs for line in job if line not in common}


def _common(jobs: Sequence[Sequence[str]]) -> set[str]:
    return set[str].intersection(*map(set, jobs)) if jobs else set()


def _composed(lines: Sequence[str], loader: ConfigLoader, config: DictConfig) -> DictConfig:
    if set(lines) <= set(config.hydra.overrides.task):
        return config
    for each in (lines, [line for line in lines if is_in(line.partition("=")[0].lstrip("+"), "loop")]):
        with suppress(HydraException):  # a line may need a varying value; errors of a job are reported by its check
            return loader.load_sweep_config(config, list(each))
    return config
