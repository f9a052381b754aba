"""Private functions of Hydra 1.3 that the fast composition calls."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname  # type: ignore[attr-defined,unused-ignore]
from hydra._internal.config_repository import IConfigRepository
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig


def repository(loader: ConfigLoaderImpl, master: DictConfig, overrides: Sequence[Override]) -> IConfigRepository:
    """Return the configs that a composition with these overrides of Hydra's own values can choose from."""
    lines = [str(override.input_line) for override in overrides]
    return loader._parse_overrides_and_create_caching_repo(master.hydra.job.config_name, lines)[1]


def load(loader: ConfigLoaderImpl, master: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """Compose one job, without the values that have been resolved for the sweep."""
    lines = [str(override.input_line) for override in overrides]
    return loader.load_configuration(master.hydra.job.config_name, lines, RunMode.RUN)


def chooses(repository: IConfigRepository, override: Override) -> bool:
    """Return whether an override belongs to the defaults list, not to the values."""
    return repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)


def reads_no_value(override: Override) -> bool:
    """Return whether an override replaces the old value without reading it."""
    return not (override.is_add() or override.is_delete() or isinstance(override.value(), dict))


def is_simple(override: Override) -> bool:
    """Return whether the key of an override is names with dots between them."""
    return True


def record_dirname(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """Write `hydra.job.override_dirname`, made from the overrides of the task."""
    form = cfg.hydra.job.config.override_dirname
    cfg.hydra.job.override_dirname = get_overrides_dirname(
        overrides=list(overrides), kv_sep=form.kv_sep, item_sep=form.item_sep, exclude_keys=form.exclude_keys
    )
