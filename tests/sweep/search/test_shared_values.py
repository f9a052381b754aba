"""Values that all jobs of a sweep share decide its rungs, wherever they are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from trainyard.errors import ConfigError

HYPERBAND = OmegaConf.create({"_target_": "trainyard.sweep.proposers.pruners.Hyperband", "last": "auto"})
RATES = ["optim.lr=1e-3,1e-2"]


@pytest.fixture
def ran(hydra: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives what a sweeper, by its name, would run."""
    import hydra_plugins.trainyard_launcher as launchers  # here, because Hydra imports its plugins anew
    import hydra_plugins.trainyard_search as searches

    monkeypatch.setattr("trainyard.sweep.proposers.pruner_settings.as_sweepable", lambda function: function)
    monkeypatch.setattr("trainyard.sweep.proposers.population_settings.as_sweepable", lambda function: function)
    loader, config = hydra
    given = {key: value for key, value in config.hydra.sweeper.items() if not key.startswith("_")}
    makers = {
        "search": lambda **own: searches.SearchSweeper(**given | own),
        "pbt": lambda **own: searches.PopulationSweeper(population=4, interval=2, **own),
        "grid": lambda **own: launchers.GridSweeper(None, **own),
    }

    def sweep(name: str, *lines: str, **own: Any) -> Any:
        sweeper: Any = makers[name](**own)
        sweeper.config, sweeper.launcher = config, launchers.LocalLauncher()
        sweeper.launcher.task_function = SimpleNamespace(resumes=True)
        sweeper.hydra_context = SimpleNamespace(config_loader=loader)
        with monkeypatch.context() as patch:
            found: list[Any] = []
            patch.setattr(sweeper.launcher, "run", found.append)
            sweeper.sweep([*RATES, *lines])
        return found[0]

    return sweep


@pytest.mark.parametrize(
    ("params", "lines"),
    [
        ({"loop.max_epochs": 7}, []),
        ({}, ["loop.max_epochs=choice(7)"]),
        ({"loop": "{max_epochs: 7}"}, []),
        ({"+length": 7}, ["loop.max_epochs=${length}"]),
        ({"loop.max_epochs": 9}, ["loop.max_epochs=7"]),
        ({"loop.max_epochs": 7}, ["model=mlp,cnn", "model.hidden=[8]", "+model.unknown=1"]),
    ],
)
def test_a_length_that_all_jobs_share_decides_the_rungs(ran: Any, params: Any, lines: Any) -> None:
    assert ran("pbt", *lines, params=params)._places == (2, 4, 6)
    assert ran("search", *lines, params=params, pruner=HYPERBAND).identity["pruner"]["last"] == 7
    blocks = [["seed=1"], ["seed=2"]]
    found = ran("grid", *lines, params=OmegaConf.create(params), pruner=HYPERBAND, blocks=blocks)
    assert found.identity["pruner"]["last"] == 7


def test_a_conditional_length_is_not_shared(ran: Any, hydra: Any) -> None:
    when = {"loop.max_epochs": "model=cnn"}
    found = ran("search", "model=mlp,cnn", "loop.max_epochs=7", pruner=HYPERBAND, when=when)
    assert found.identity["pruner"]["last"] == hydra[1].loop.max_epochs


@pytest.mark.parametrize("name", ["search", "grid"])
def test_rungs_are_not_compared_with_a_length_that_varies(ran: Any, name: str) -> None:
    asha = OmegaConf.create({"_target_": "trainyard.sweep.proposers.pruners.Asha", "by": "auto", "first": "auto"})
    lines = ["loop=iter", "loop.val_interval=2000"]  # the loop has 1,000 iterations
    found = ran(name, *lines, "loop.max_iters=5000,9000", pruner=asha)
    assert found.identity["pruner"]["first"] == 2000
    with pytest.raises(ConfigError, match=r"^loop\.val_interval: 2000 is invalid\. Expected at most 1000 with"):
        ran(name, *lines, pruner=asha)
