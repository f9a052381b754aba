from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trainyard.config.hydra_versions import IS_14
from trainyard.config.single_composition import composed_once

pytestmark = pytest.mark.skipif(IS_14, reason="Hydra 1.4 reads the mode without a composition")
CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RunMode]]:
    modes: list[RunMode] = []
    original = ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, *args: Any, **options: Any) -> DictConfig:
        modes.append(options["run_mode"])
        return original(self, *args, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    GlobalHydra.instance().clear()
    yield modes
    GlobalHydra.instance().clear()


def run(overrides: list[str]) -> str:
    """What `hydra.main` does up to the task function of a single run, for the config of this project."""
    GlobalHydra.instance().clear()
    path = create_automatic_config_search_path(None, None, str(CONF))
    hydra = Hydra.create_main_hydra2("train", path)
    overrides = [*overrides]
    if hydra.get_mode("train", overrides) is None:
        overrides.extend(["hydra.mode=RUN"])
    return OmegaConf.to_yaml(hydra.compose_config("train", overrides, RunMode.RUN, with_log_configuration=False))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=cnn", "optim.lr=0.1", "hook=[default,ema]"],
        ["hydra.run.dir=here", "experiment=digits_cnn", "~tracker"],
        ["++new.key=[1,{a: b}]", "hydra/job_logging=none", "hydra.job.name=other"],
    ],
)
def test_the_config_of_a_run_is_the_one_of_two_compositions(overrides: list[str], compositions: list[RunMode]) -> None:
    twice = run(overrides)
    assert compositions == [RunMode.MULTIRUN, RunMode.RUN]
    compositions.clear()
    with composed_once():
        once = run(overrides)
    assert compositions == [RunMode.RUN]
    assert once == twice
    assert OmegaConf.create(once).hydra.overrides.hydra[-1] == "hydra.mode=RUN"


@pytest.mark.parametrize(
    ("overrides", "modes"),
    [
        (["hydra.mode=RUN"], [RunMode.RUN, RunMode.RUN]),
        (["env.fast_paths=false"], [RunMode.RUN, RunMode.RUN]),
        (["hydra.verbose=true"], [RunMode.RUN, RunMode.RUN]),
    ],
)
def test_what_is_composed_again(overrides: list[str], modes: list[RunMode], compositions: list[RunMode]) -> None:
    twice = run(overrides)
    compositions.clear()
    with composed_once():
        assert run(overrides) == twice
    assert compositions == modes


@pytest.mark.parametrize("overrides", [["model=no_such"], ["optim.lr=1,2"], ["no.such=1"]])
def test_an_error_is_hydras_own(overrides: list[str], compositions: list[RunMode]) -> None:
    with pytest.raises(ConfigCompositionException) as own:
        run(overrides)
    with composed_once(), pytest.raises(ConfigCompositionException) as ours:
        run(overrides)
    assert str(ours.value) == str(own.value)


def test_outside_the_block_hydra_is_as_it_was(compositions: list[RunMode]) -> None:
    before = Hydra.get_mode, Hydra.compose_config
    with pytest.raises(KeyError), composed_once():
        raise KeyError
    assert (Hydra.get_mode, Hydra.compose_config) == before
