"""`quick=true` tries everything once, in seconds, and tracks nothing."""

import json
import os
from pathlib import Path
from typing import Any

import numpy
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


@pytest.mark.parametrize("loop", [["loop.max_epochs=1"], ["loop=iter", "loop.max_iters=2"]])
def test_of_a_run_that_would_end_at_the_checkpoint(command: Any, loop: list[str]) -> None:
    """Iterations follow the checkpoint also if the run itself has no more than the checkpoint."""
    status, said = command("quick=true", *loop, "hydra.run.dir=run", quick=["tracker=none"])
    assert status == 0, said
    assert "Nothing to train" not in said
    records = [record for record, _ in read(Path("run/metrics.jsonl"))]
    steps = [record["step"] for record in records if record["kind"] == "metrics" and "val/accuracy" in record["values"]]
    assert steps == [2, 4]


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


def test_without_a_validation_set_and_with_one_batch_per_epoch(command: Any) -> None:
    data = ("data=arrays", "data.path=points.npz", "data.batch_size=64", "data.val_fraction=0", "data.test_fraction=0")
    numpy.savez("points.npz", x=numpy.zeros((32, 4), "float32"), y=numpy.arange(32) % 3)
    status, said = command("quick=true", *data, "loop.max_epochs=50", "hydra.run.dir=run", quick=["tracker=none"])
    assert status == 0, said
    records = [record for record, _ in read(Path("run/metrics.jsonl"))]
    assert max(record["step"] for record in records if record["kind"] == "metrics") <= 4


def test_without_checkpoints(train: Any) -> None:
    result = train("quick=true", "~hook.checkpoint", "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert "Quick check passed: two batches of each split. No hook saves checkpoints" in result.stdout


def test_a_simulation_has_iterations_instead_of_splits(train: Any, tmp_path: Path) -> None:
    (tmp_path / "corridor.py").write_text(
        "from types import SimpleNamespace\n\n\n"
        "class Corridor:\n"
        "    action_space = SimpleNamespace(n=2)\n\n"
        "    def reset(self, seed):\n        self.steps = 0\n        return [0.0, 1.0], {}\n\n"
        "    def step(self, action):\n        self.steps += 1\n"
        "        return [float(action), 1.0], 1.0, self.steps >= 5, False, {}\n"
    )
    result = train(
        *("experiment=cartpole_dqn", "quick=true", "model.net.in_features=2", "hydra.run.dir=run", "device=cpu"),
        *("loop.environment._target_=corridor.Corridor", "~loop.environment.id", "loop.warm_up=20"),
        "tracker=none",
        quick=False,
        env={"PYTHONPATH": f"{Path(__file__).parents[2] / 'src'}{os.pathsep}{tmp_path}"},
    )
    assert result.returncode == 0, result.stderr
    assert "Training DQN, in run\n" in result.stdout
    assert "Quick check passed: two iterations, a checkpoint, and resuming from this checkpoint." in result.stdout
