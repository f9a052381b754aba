"""Recipe of a job's config, from which another process creates it with a composition that many jobs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from trainyard.config.hydra_versions import IS_14
from trainyard.config.plain import plain
from trainyard.sweep.compose.plain import assign


def internals() -> Any:
    """Return the private functions of this version of Hydra.

    Raises:
        ImportError: this version has other functions.
    """
    return import_module(f"trainyard.sweep.compose.{'hydra14' if IS_14 else 'hydra13'}")


@dataclass(frozen=True)
class Shared:
    """Composition of jobs with the same choices.

    Attributes:
        copy: returns a copy of it.
        num_tasks: entries of `hydra.overrides.task` that come from the configs themselves.
    """

    copy: Callable[[], DictConfig]
    num_tasks: int


@dataclass(frozen=True)
class Recipe:
    """Changes of a job to the shared composition.

    Attributes:
        own: the overrides that are applied to a copy of it.
        task: the overrides of the task, in order, for the record in Hydra's node.
        cache: results of interpolations that are resolved once (`${now:…}`).
    """

    own: Sequence[Override]
    task: Sequence[Override]
    cache: Any

    def make(self, shared: Shared) -> DictConfig:
        """Return the config."""
        config = shared.copy()
        for override in self.own:
            ConfigLoaderImpl._apply_overrides_to_config([override], config)
        record(config, self.task, shared.num_tasks)
        OmegaConf.set_cache(config, self.cache)
        return config


def record(config: DictConfig, overrides: Sequence[Override], num_tasks: int) -> None:
    """Write the overrides of the task to the place where Hydra writes them."""
    tasks = config.hydra.overrides.task
    lines = [override.input_line for override in overrides]
    if len(tasks) == num_tasks + len(lines):
        assign(tasks, [*plain(tasks)[:num_tasks], *lines])
    else:
        del tasks[num_tasks:]
        for line in lines:
            tasks.append(line)
    internals().record_dirname(config, overrides)
