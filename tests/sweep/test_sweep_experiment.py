"""The experiment of a sweep that has a separate one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from trainyard.sweep.tracking import SweepTracking
from trainyard.track import MLflowTracker, NoTracker


class Tracker(NoTracker):
    experiment_per_sweep = True

    def __init__(self) -> None:
        self.experiment = MLflowTracker().experiment


@pytest.mark.parametrize(
    ("variables", "name"),
    [({}, "trainyard"), ({"MLFLOW_EXPERIMENT_NAME": "mine"}, "mine"), ({"MLFLOW_EXPERIMENT_ID": "7"}, "trainyard")],
)
def test_the_experiment_is_named_after_the_one_in_effect(
    variables: dict[str, str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {"MLFLOW_TRACKING_URI": "http://host:5000", **variables}.items():
        monkeypatch.setenv(key, value)
    directory = tmp_path / "day" / "time"
    directory.mkdir(parents=True)
    plan: Any = SimpleNamespace(keys=["seed"], jobs=[])
    tracking = SweepTracking(directory, OmegaConf.create({"objective": None}), plan, tracker=Tracker())
    assert tracking.experiment == f"{name}/day time"
