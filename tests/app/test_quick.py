"""`quick=true` tries everything once, in seconds, and tracks nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.track import read


@pytest.mark.parametrize("spread", [[], ["strategy=ddp", "strategy.devices=2"]])
def test_of_a_run(command: Any, spread: list[str]) -> None:
    status, said = command(
        "quick=true", "tracker=mlflow", "hydra.run.dir=run", "loop.val_interval=2", "schedule=cosine", *spread
    )
    assert status == 0, said
    records = [record for record, _ in read(Path("run/metrics.jsonl"))]
    statuses = [record["status"] for record in records if record["kind"] == "status"]
    assert statuses == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]
    names = {name for record in records if record["kind"] == "metrics" for name in record["values"]}
    assert {"val/accuracy", "test/accuracy"} <= names
    steps = [record["step"] for record in records if record["kind"] == "metrics" and "val/accuracy" in record["values"]]
    assert steps == [2, 4]
    assert json.loads(Path("run/run.json").read_text())["uri"] is None
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["run"]


@pytest.mark.parametrize("fuse", ["off", "2"])
def test_of_a_sweep(train: Any, tmp_path: Path, fuse: str) -> None:
    result = train(
        *("-m", "quick=true", "seed=0,1", "tracker=mlflow", "hydra.sweep.dir=sweep", f"hydra.launcher.fuse={fuse}")
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for job in ("0", "1"):
        records = [record for record, _ in read(tmp_path / "sweep" / job / "metrics.jsonl")]
        statuses = [record["status"] for record in records if record["kind"] == "status"]
        assert statuses == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("limit.train_batches=0", "limit.train_batches: 0 is invalid"),
        ("+limit.train=2", "train_batches"),
        ("overfit=0", "overfit: 0 is invalid"),
        ("quick=maybe", "quick: 'maybe' is invalid"),
    ],
)
def test_what_cannot_work_is_told(command: Any, override: str, said: str) -> None:
    status, told = command(override)
    assert status == 2
    assert said in " ".join(told.split())


def test_without_checkpoints(train: Any) -> None:
    result = train("quick=true", "~hook.checkpoint", "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert "Quick check passed: two batches of each split. No hook saves checkpoints" in result.stdout
