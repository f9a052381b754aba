"""Hydra plugin: the sweepers `search` and `pbt`.

This module is thin, because Hydra imports it at every start. The work is done in `trainyard.sweep.proposers`.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SearchSweeper(Sweeper):
    """Searches the space that the command line defines, with Trainyard's launcher.

    Args:
        **settings: the settings that `trainyard.sweep.proposers.search_settings.SearchSettings` documents.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search.

        Raises:
            TrainyardError: a setting is invalid, or the search was interrupted.
        """
        from trainyard.sweep.proposers.pruner_settings import check_application
        from trainyard.sweep.proposers.search_settings import SearchSettings
        from trainyard.sweep.proposers.shared_values import of_search, varying_in_search

        config, loader, launcher = self._checked("search")
        shared = of_search(self.settings, arguments, loader, config)
        varying = varying_in_search(self.settings, arguments, loader)
        settings = SearchSettings.from_config(self.settings, shared, varying)
        check_application(launcher.task_function, settings.pruner)
        launcher.run(settings.proposer(arguments, loader, config))

    def _checked(self, name: str) -> tuple[DictConfig, Any, Any]:
        """Return the config of the sweep, Hydra's config loader, and the launcher.

        Raises:
            ConfigError: the launcher is not Trainyard's.
        """
        from hydra_plugins.trainyard_launcher import LocalLauncher
        from trainyard.errors import ConfigError

        assert self.config is not None
        assert self.hydra_context is not None
        if not isinstance(self.launcher, LocalLauncher):
            given = self.config.hydra.runtime.choices.get("hydra/launcher")
            raise ConfigError(
                "hydra/launcher",
                given,
                f"local, slurm or ray, because hydra/sweeper={name} supports no other launcher",
                options=["local", "slurm", "ray"],
            )
        return self.config, self.hydra_context.config_loader, self.launcher


class PopulationSweeper(SearchSweeper):
    """Trains a population, whose worst members continue as copies of the best, with Trainyard's launcher.

    Args:
        **settings: the settings that `trainyard.sweep.proposers.population_settings.PopulationSettings` documents.
    """

    def sweep(self, arguments: list[str]) -> None:
        """Run the population.

        Raises:
            TrainyardError: a setting is invalid, or the training was interrupted.
        """
        from trainyard.sweep.proposers.population_settings import PopulationSettings, check_application
        from trainyard.sweep.proposers.shared_values import of_search

        config, loader, launcher = self._checked("pbt")
        settings = PopulationSettings.from_config(self.settings, of_search(self.settings, arguments, loader, config))
        check_application(launcher.task_function)
        launcher.run(settings.proposer(arguments, loader, config))
