"""Private functions of Hydra 1.4 that the fast composition calls: those of `trainyard.sweep.compose.hydra13`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig


def repository(loader: ConfigLoaderImpl, master: DictConfig, overrides: Sequence[Override]) -> IConfigRepository:
    """Return the configs that a composition with these overrides of Hydra's own values can choose from."""
    lines = [str(override.input_line) for override in overrides]
    make: Any = loader._parse_overrides_and_create_caching_repo
    found: IConfigRepository = make(master.hydra.job.config_name, lines, parsed_overrides=list(overrides))[1]
    return found


def load(loader: ConfigLoaderImpl, master: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """Compose one job, without the values that have been resolved for the sweep.

    The aliases in a sweep's overrides are replaced already; `load_configuration` would replace them again.
    """
    private: Any = loader
    cfg: DictConfig = private._load_configuration(
        config_name=master.hydra.job.config_name,
        overrides=[str(override.input_line) for override in overrides],
        run_mode=RunMode.RUN,
        from_shell=True,
        validate_sweep_overrides=True,
        skip_missing_defaults=False,
        activate_config_repository=False,
        parsed_overrides=list(overrides),
    )
    private._ensure_sweep_config_controller_unchanged(master_config=master, sweep_config=cfg)
    return cfg


def chooses(repository: IConfigRepository, override: Override) -> bool:
    """Return whether an override belongs to the defaults list, not to the values."""
    if not is_simple(override):
        return False
    key = override.key_or_group
    if override.is_delete() and repository.config_exists(key):
        return True
    return repository.group_exists(key) and (override.is_delete() or not isinstance(override.value(), dict))


def reads_no_value(override: Override) -> bool:
    """Return whether an override replaces the old value without reading it."""
    extends: bool = override.is_list_extend()  # type: ignore[attr-defined,unused-ignore]
    return not (override.is_add() or override.is_delete() or extends or isinstance(override.value(), dict))


def is_simple(override: Override) -> bool:
    """Return whether the key of an override is names with dots between them, not a path such as `a[0]`."""
    return not override.is_value_path  # type: ignore[attr-defined,unused-ignore]


def record_dirname(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """Do nothing: `hydra.job.override_dirname` is an interpolation that reads the overrides."""
