"""A composed search: the loader, the config and settings in it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.sweep.proposers.search_settings import SearchSettings

CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture(scope="module")
def composed() -> Any:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        config = compose("train", overrides=["hydra/sweeper=search"], return_hydra_config=True)
        yield GlobalHydra.instance().config_loader(), config


@pytest.fixture
def hydra(composed: Any) -> Any:
    """Return the loader, and a config of a whole sweep."""
    return composed[0], deepcopy(composed[1])


@pytest.fixture
def settings_of() -> Callable[..., SearchSettings]:
    """Return a function that makes the settings of a config, with some that are different."""

    def make(config: DictConfig, **changed: Any) -> SearchSettings:
        given = {key: value for key, value in config.hydra.sweeper.items() if not key.startswith("_")}
        return SearchSettings.from_config({**given, **changed}, config)

    return make
