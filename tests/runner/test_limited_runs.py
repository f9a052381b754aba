"""Limits hold for each set, in stacks as in single runs, and a limited run resumes exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Checkpoint
from trainyard.runner import Runner
from trainyard.runner.hook import Hook


class Seen(Hook):
    """Counts batches, and keeps the inputs."""

    stackable = True

    def __init__(self) -> None:
        self.sets: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.sets["train"].append(data_batch[0].clone())

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.sets["val"].append(data_batch[0].clone())

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.sets["test"].append(data_batch[0].clone())


def config(**others: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [8]},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 200, "batch_size": 16, "eval_batch_size": 4},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "metric": {"accuracy": {"_target_": "trainyard.metrics.Accuracy"}},
        "objective": "val/accuracy",
        "direction": "maximize",
        "device": "cpu",
        "hook": {},
    } | others


LIMIT = {"train_batches": 2, "val_batches": 3, "test_batches": 0.5}


def test_each_set_has_its_own() -> None:
    seen = Seen()
    runner = Runner.from_cfg(config(limit=LIMIT), hooks={"seen": seen})
    runner.train()
    whole = len(list(Runner.from_cfg(config()).loader("test").batches()))
    runner.test()
    assert (runner.iter, len(seen.sets["val"]), len(seen.sets["test"])) == (6, 9, -(-whole // 2))


def test_a_stack_is_limited_as_its_members_alone() -> None:
    configs = [config(seed=seed, limit=LIMIT) for seed in (0, 1)]
    together = FusedRunner(configs)
    found = together.train()
    for own, values in zip(configs, found, strict=True):
        alone = Runner.from_cfg(own)
        (expected,) = alone.train()
        assert alone.iter == together.iter == 6
        assert values["val/accuracy"] == pytest.approx(expected["val/accuracy"])


def test_overfit_trains_and_validates_on_the_same_batches() -> None:
    seen = Seen()
    runner = Runner.from_cfg(config(overfit=2), hooks={"seen": seen})
    runner.train()
    train, val = seen.sets["train"], seen.sets["val"]
    assert len(train) == len(val) == 6
    for index in range(6):
        assert torch.equal(train[index], train[index % 2])
        assert torch.equal(train[index], val[index])


@pytest.mark.parametrize("limits", [{"limit": LIMIT}, {"overfit": 3}])
def test_a_limited_run_resumes_exactly(tmp_path: Path, limits: Any) -> None:
    class Interrupt(Hook):
        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter == 3:
                runner.interrupt()

    for name, hooks in (("whole", {}), ("parts", {"interrupt": Interrupt()})):
        runner = Runner.from_cfg(
            config(**limits), hooks={"checkpoint": Checkpoint(), **hooks}, work_dir=tmp_path / name
        )
        runner.train()
    assert runner.iter == 3
    resumed = Runner.from_cfg(
        config(**limits), hooks={"checkpoint": Checkpoint()}, work_dir=tmp_path / "parts", resume=True
    )
    resumed.train()
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints/epoch_0003.pt", weights_only=True)["model"]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
