"""Many small models on the digits: the configs of their runs, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from torch import Tensor

from trainyard.data.lengths import exact_length
from trainyard.fused.runner import FusedRunner
from trainyard.runner import Runner

BATCH = 64
HIDDEN = (64, 64)


def config(member: int, device: str, **more: Any) -> dict[str, Any]:
    """Return the config of a run without validation; members differ in seed and, up to the eighth, learning rate."""
    return {
        "model": {"_target_": "trainyard.models.MLP", "in_features": 64, "num_classes": 10, "hidden": list(HIDDEN)},
        "data": {
            "_target_": "trainyard.data.Digits",
            "val_fraction": 0,
            "test_fraction": 0,
            "batch_size": BATCH,
            "drop_last": True,
        },
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": rate(member), "fused": True},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 10**6},
        "hook": {},
        "device": device,
        "seed": member,
        **more,
    }


def rate(member: int) -> float:
    """Return a member's learning rate."""
    return 1e-3 * (1 + member % 8)


def prepared(members: int | None, device: str, **more: Any) -> Runner:
    """Return a Runner that is ready to train: a stack of this number of members, or (None) a single run."""
    configs = [config(member, device, **more) for member in range(members or 1)]
    runner = Runner.from_cfg(configs[0]) if members is None else FusedRunner(configs)
    runner.prepare()
    runner.model.train()
    return runner


def steps(runner: Runner) -> Iterator[Tensor]:
    """Train step by step, without the loop and its hooks, and yield the losses: a number, or one for each member."""
    loader, step = runner.loader("train"), runner.step
    total = exact_length(loader) or 0
    for epoch in count():
        for index, batch in enumerate(step.batches_of(loader, epoch, 0)):
            yield step(batch, index, total)["loss"]


def must_be_captured(runner: Runner) -> None:
    """Raise an error if the step of a run on CUDA is not captured."""
    refusal = getattr(runner.step, "refusal", None)
    if refusal is not None:
        raise RuntimeError(f"the step is not captured: {refusal}")
