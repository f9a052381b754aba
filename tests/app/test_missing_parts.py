"""Configs without a usual part: without a tracker, a checkpoint, a group to choose from, a hook for the schedule."""

import json
from pathlib import Path
from typing import Any

import pytest
from waiting import LIMIT


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


OLD = "norms: {_target_: trainyard.hooks.Norms}\n"  # an option file as it was before it brought the default hooks along


def test_hooks_without_a_log_or_checkpoints_are_told(train: Any, tmp_path: Path) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/old.yaml").write_text(OLD)
    found = [f"hydra.searchpath=[file://{tmp_path}]", "hook=old"]
    told = "No hook logs values (hook.logger) and none saves checkpoints (hook.checkpoint). To keep the default hooks"
    assert train(*found).stdout.count(told) == 1
    assert (
        "No hook saves checkpoints (hook.checkpoint). To keep the default hooks"
        in train(*found, "+hook.log._target_=trainyard.hooks.Logger").stdout
    )


def test_what_was_left_out_on_purpose_is_not_told(train: Any) -> None:
    for left_out in (["~hook.checkpoint", "hook.logger=null"], ["hook=[]"]):
        result = train(*left_out)
        assert result.returncode == 0, result.stderr
        assert "No hook" not in result.stdout


def test_a_schedule_that_no_hook_applies(train: Any) -> None:
    assert "The schedule has no effect" in train("~hook.param_schedule", "schedule=cosine").stdout
    assert "The schedule has no effect" not in train("schedule=cosine").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["hook=lr_finder"],
        ["hook.checkpoint.save_best=false", "hook.checkpoint.save_last=false", "hook.checkpoint.interval=9"],
    ],
)
def test_a_run_that_saves_no_checkpoint_by_design_misses_no_model(train: Any, tmp_path: Path, arguments: Any) -> None:
    uri = f"tracker.uri=sqlite:///{tmp_path}/m.db"
    done = train("tracker=mlflow", uri, f"tracker.wait={LIMIT}", "hydra.run.dir=run", *arguments)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*.pt"))
    assert "MLflow: run " in done.stdout
    assert "not uploaded" not in done.stderr + done.stdout
    assert "not in MLflow" not in done.stderr + done.stdout


def test_without_checkpoints_no_model_is_promised(train: Any, tmp_path: Path) -> None:
    uri = f"tracker.uri=sqlite:///{tmp_path}/m.db"
    done = train("~hook.checkpoint", "tracker=mlflow", uri, "hydra.run.dir=run", "loop.max_epochs=1")
    assert done.returncode == 0
    assert "not uploaded to MLflow" not in done.stderr + done.stdout
    assert '"kind":"model"' not in (tmp_path / "run/metrics.jsonl").read_text().replace(" ", "")


def test_a_model_that_has_not_been_trained_is_not_tested(train: Any, tmp_path: Path) -> None:
    done = train("hook=lr_finder", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "Stopped early: " in done.stdout
    assert "test  epoch" not in done.stdout
    assert '"test/' not in (tmp_path / "run/metrics.jsonl").read_text()
