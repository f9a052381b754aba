"""What a search knows before it begins: the trials of another sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import ConfigError
from trainyard.sweep.events import Ended, Proposed
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.proposers.sampling import SamplerSource
from trainyard.sweep.proposers.search import SearchProposer

LINES = ["optim.lr=tag(log,interval(1e-4,1e-1))", "model.hidden=[16],[32]"]
JOBS: list[tuple[list[str], str, Any]] = [
    (["optim.lr=0.001", "model.hidden=[16]"], "done", 0.3),
    (["optim.lr=0.01", "+model.hidden=[32]", "seed=4"], "done", 2),
    (["optim.lr=10", "model.hidden=[32]"], "done", 0.1),
    (["optim.lr=0.01", "model.hidden=[64]"], "done", 0.1),
    (["optim.lr=0.01"], "done", 0.1),
    (["optim.lr=0.01", "model.hidden=[16]"], "failed", None),
    (["optim.lr=0.02", "model.hidden=[16]"], "done", float("nan")),
    (["optim.lr=abc", "model.hidden=[16]"], "done", 0.1),
]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    manifest = Manifest.open(tmp_path)
    for num, (overrides, state, objective) in enumerate(JOBS):
        manifest.log(Proposed(num, tuple(overrides)), Ended(num, state, 1.0, objective))
    return tmp_path


def source_of(proposer: SearchProposer) -> SamplerSource:
    assert isinstance(proposer._source, SamplerSource)
    return proposer._source


def test_a_warm_start_tells_the_sampler_of_the_jobs_that_have_its_parameters(
    hydra: Any, settings_of: Any, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader, config = hydra
    proposer = settings_of(config, warm_start=str(earlier)).proposer(LINES, loader, config)
    known = [(trial.params, trial.value) for trial in source_of(proposer).study([]).trials]
    assert known == [
        ({"optim.lr": 0.001, "model.hidden": "[16]"}, 0.3),
        ({"optim.lr": 0.01, "model.hidden": "[32]"}, 2.0),
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"Warm start from {earlier}: 2 of 8 jobs are taken.",
        "  not #2, #7: optim.lr is outside of the range of this search",
        "  not #3: model.hidden is outside of the range of this search",
        "  not #4: model.hidden was no parameter there",
        "  not #5, #6: not done with an objective",
    ]


def test_what_was_taken_identifies_a_search(hydra: Any, settings_of: Any, earlier: Path) -> None:
    loader, config = hydra
    first = settings_of(config, warm_start=str(earlier)).proposer(LINES, loader, config).identity
    assert len(first["warm_start"]) == 2
    Manifest.open(earlier).log(Proposed(8, ("optim.lr=0.05", "model.hidden=[16]")), Ended(8, "done", 1.0, 0.2))
    second = settings_of(config, warm_start=str(earlier)).proposer(LINES, loader, config).identity
    assert len(second["warm_start"]) == 3


def test_a_sampler_begins_where_another_sweep_ended(hydra: Any, settings_of: Any, tmp_path: Path) -> None:
    """TPE draws its first ten trials at random; with as many of another sweep it learns from the first one on."""
    loader, config = hydra
    manifest = Manifest.open(tmp_path)
    for num in range(40):
        rate = 10 ** (-4 + 3 * num / 39)
        manifest.log(
            Proposed(num, (f"optim.lr={rate!r}", "model.hidden=[16]")), Ended(num, "done", 1.0, abs(rate - 0.01))
        )

    def rates(**changed: Any) -> list[float]:
        found = settings_of(config, direction="minimize", **changed).proposer(LINES, loader, config)
        return [float(each.overrides[0].partition("=")[2]) for each in found.ask(8)]

    cold, warm = rates(), rates(warm_start=str(tmp_path))
    assert sum(0.003 < rate < 0.03 for rate in warm) >= 6
    assert sum(0.003 < rate < 0.03 for rate in cold) < 6


def test_a_warm_start_from_no_sweep_is_refused(hydra: Any, settings_of: Any, tmp_path: Path) -> None:
    loader, config = hydra
    with pytest.raises(ConfigError) as error:
        settings_of(config, warm_start=str(tmp_path / "none")).proposer(LINES, loader, config)
    assert str(error.value).startswith(
        f"hydra.sweeper.warm_start: '{tmp_path / 'none'}' given; accepted: the directory"
    )
