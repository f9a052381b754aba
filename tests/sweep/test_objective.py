"""A run that has diverged is told to a sweeper that learns as the worst there is, since Optuna takes no NaN."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins.trainyard_launcher import LocalLauncher
from trainyard.sweep.settings import SweepSettings

LEARNS, GRID = "hydra.plugins.sweeper.Sweeper", "hydra_plugins.trainyard_launcher.GridSweeper"


def told(values: list[Any], *, sweeper: str = LEARNS, direction: Any = None, own: str | None = None) -> list[Any]:
    """What the launcher gives to a sweeper for what jobs have returned."""
    returns = [JobReturn(_return_value=value, status=JobStatus.COMPLETED) for value in values]
    failed = JobReturn(_return_value=ArithmeticError("failed"), status=JobStatus.FAILED)
    launcher: Any = LocalLauncher()
    launcher.sweep = SimpleNamespace(launch=lambda *_: [*returns, failed], settings=SweepSettings())
    node = {"_target_": sweeper, "direction": direction}
    launcher.config = OmegaConf.create({"hydra": {"sweeper": node}, "direction": own})
    *given, last = launcher.launch([], 0)
    assert last is failed
    return [result.return_value for result in given]


@pytest.mark.parametrize(
    ("direction", "own", "worst"),
    [
        ("minimize", "maximize", math.inf),
        ("maximize", "minimize", -math.inf),
        (None, "maximize", -math.inf),
        (None, None, math.inf),
    ],
)
def test_the_worst_there_is(direction: str | None, own: str | None, worst: float) -> None:
    assert told([0.5, math.nan, None, "text", math.inf], direction=direction, own=own) == [
        0.5,
        worst,
        None,
        "text",
        math.inf,
    ]


def test_several_objectives() -> None:
    given = [[math.nan, math.nan], [1.0, 2.0], (0.5, math.nan)]
    found = told(given, direction=["minimize", "maximize"])
    assert found == [[math.inf, -math.inf], [1.0, 2.0], [0.5, -math.inf]]


def test_a_sweeper_that_learns_nothing_gets_what_there_is() -> None:
    assert math.isnan(told([math.nan], sweeper=GRID)[0])
