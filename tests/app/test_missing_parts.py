"""Configs without a usual part: without a tracker, a checkpoint, a group to choose from, a hook for the schedule."""

import json
from pathlib import Path
from typing import Any


def test_a_model_that_no_group_holds(train: Any, tmp_path: Path) -> None:
    net = "net: {_target_: torch.nn.Linear, in_features: 2, out_features: 2}"
    arguments = [argument for argument in train.quick if not argument.startswith("model")]
    model = f"+model={{_target_: trainyard.models.Supervised, {net}}}"
    result = train(*arguments, "~model", model, "hydra.run.dir=run", quick=False)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["name"] == "rings run"


def test_no_tracker_at_all(train: Any) -> None:
    result = train("~tracker")
    assert result.returncode == 0, result.stderr


def test_what_was_tested_without_a_best_checkpoint(train: Any) -> None:
    result = train("~hook.checkpoint")
    assert result.returncode == 0, result.stderr
    assert "; the last weights, on the test set, " in result.stdout
    assert "; on the test set " not in result.stdout
    assert "; on the test set " in train().stdout


def test_a_schedule_that_no_hook_applies(train: Any) -> None:
    assert "Nothing applies the schedule" in train("~hook.param_schedule", "schedule=cosine").stdout
    assert "Nothing applies the schedule" not in train("schedule=cosine").stdout
