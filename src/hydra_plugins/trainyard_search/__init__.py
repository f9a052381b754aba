"""Hydra plugin: the sweeper `search`.

It is thin, since Hydra imports this module at every start. The work is in `trainyard.sweep.proposers`.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SearchSweeper(Sweeper):
    """Searches the space that the command line describes, on our launcher.

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
            TrainyardError: a setting cannot work, or the search was interrupted.
        """
        from hydra_plugins.trainyard_launcher import LocalLauncher
        from trainyard.errors import ConfigError
        from trainyard.sweep.proposers.pruner_settings import check_application
        from trainyard.sweep.proposers.search_settings import SearchSettings

        assert self.config is not None
        assert self.hydra_context is not None
        if not isinstance(self.launcher, LocalLauncher):
            given = self.config.hydra.runtime.choices.get("hydra/launcher")
            raise ConfigError("hydra/launcher", given, "local, with hydra/sweeper=search", options=["local"])
        settings = SearchSettings.from_config(self.settings, self.config)
        check_application(self.launcher.task_function, settings.pruner)
        loader = self.hydra_context.config_loader
        self.launcher.run(settings.proposer(arguments, loader, self.config))
