"""Mixup and CutMix in a group: each member's batches are mixed with numbers of its own, and it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainyard.fused.model import StackedModel
from trainyard.fused.runner import FusedRunner
from trainyard.runner import Runner


def config(seed: int = 0, probability: float = 1.0, epochs: int = 1, **more: Any) -> dict[str, Any]:
    arguments = {"num_classes": "auto", "probability": probability, "label_smoothing": 0.1}
    either = {
        "_target_": "trainyard.models.RandomChoice",
        "choices": {
            "mixup": {"_target_": "trainyard.models.Mixup", "alpha": 0.8, **arguments},
            "cutmix": {"_target_": "trainyard.models.CutMix", **arguments},
        },
    }
    normalize = {"_target_": "trainyard.models.DataPreprocessor", "mean": 0.3, "std": 0.4}
    model = {"_target_": "trainyard.models.CNN", "in_channels": "auto", "num_classes": "auto", "channels": [8, 16]}
    return {
        "model": model | {"data_preprocessor": [normalize, either]},
        "data": {"_target_": "trainyard.data.Digits", "batch_size": 64},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": epochs},
        "metric": {"accuracy": {"_target_": "trainyard.metrics.Accuracy"}},
        "objective": "val/accuracy",
        "direction": "maximize",
        "hook": {},
        "device": "cpu",
        "seed": seed,
    } | more


@pytest.mark.parametrize("more", [{}, {"precision": "bf16", "accumulate": 2, "clip_grad_norm": 1.0}])
def test_a_group_learns_from_mixed_batches(more: dict[str, Any]) -> None:
    group = FusedRunner([config(seed, epochs=12, **more) for seed in range(2)])
    for metrics in group.train():
        assert metrics["val/accuracy"] > 0.85


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_member_follows_its_solo_run(probability: float) -> None:
    """Where nothing is mixed as well, with targets that are shares all the same, and smoothed."""
    loop = {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 5}
    configs = [config(seed, probability=probability, loop=loop) for seed in range(2)]
    group = FusedRunner(configs)
    group.train()
    for solo, values in zip(group.members, configs, strict=True):
        alone = Runner.from_cfg(values)
        alone.train()
        for name, tensor in solo.model.state_dict().items():
            torch.testing.assert_close(tensor, alone.model.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)


def test_evaluation_mixes_nothing() -> None:
    runners = [Runner.from_cfg(config(seed)) for seed in range(2)]
    stack = StackedModel([runner.model for runner in runners])
    batch = next(iter(runners[0].loader("val").batches()))
    predictions = stack.eval().val_step(batch)
    for runner, own in zip(runners, predictions, strict=True):
        torch.testing.assert_close(own, runner.model.eval().val_step(batch), rtol=1e-3, atol=1e-4)


def test_a_resumed_run_mixes_as_the_whole_one_did(tmp_path: Any) -> None:
    loop = {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 8}
    hook = {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "interval": 4, "by": "iter"}}
    whole = Runner.from_cfg(config(loop=loop, hook=hook, work_dir=tmp_path / "a"))
    whole.train()
    resumed = Runner.from_cfg(config(loop=loop, resume=next((tmp_path / "a/checkpoints").glob("iter_*4.pt"))))
    resumed.train()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
