"""Populations and stacks with wrong or awkward input, as a person types it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from waiting import LIMIT

from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).parents[2]
SMALL = [
    "-m", "model.hidden=[8]", "tracker=none", "hydra.launcher.max_jobs=1", "hook.checkpoint.min_seconds=0",
    "hydra.sweep.dir=s",
]  # fmt: skip
RINGS = ("data=rings", "data.num_samples=300")
POPULATION = ["hydra/sweeper=pbt", "hydra.sweeper.interval=1", "hydra.sweeper.quantile=0.5", "loop.max_epochs=3"]
MODULES = """
import torch
from torch import nn
from torch.utils.data import IterableDataset

class Hungry(nn.Module):
    steps = 0

    def __init__(self, in_features, num_classes, **others):
        super().__init__()
        self.layer = nn.Linear(in_features, num_classes)

    def forward(self, x, y=None, mode="tensor"):
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, y)} if mode == "loss" else logits

    def train_step(self, batch):
        Hungry.steps += 1
        weight = self.layer.weight
        stacked = torch._C._functorch.is_batchedtensor(weight)
        if stacked and torch._C._functorch.get_unwrapped(weight).shape[0] > 2 and Hungry.steps > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self(*batch, mode="loss")

class Ends(IterableDataset):
    \"\"\"States 20 samples, and ends earlier.\"\"\"

    def __len__(self):
        return 20

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(14):
            x = torch.randn(2, generator=generator)
            yield x, int(x.norm() > 1)
"""


@pytest.fixture
def train(tmp_path: Path) -> Any:
    (tmp_path / "own_parts.py").write_text(MODULES)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    path = os.pathsep.join(map(str, (ROOT / "src", tmp_path)))
    env = clean | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def train(*arguments: str, data: Sequence[str] = RINGS) -> Any:
        command = [sys.executable, str(ROOT / "train.py"), *SMALL, *data, *arguments]
        return forked.run(command, cwd=tmp_path, env=env, timeout=LIMIT)

    return train


def states(folder: Path) -> dict[int, str]:
    return {num: entry.state for num, entry in Manifest.open(folder).entries.items()}


def inherited(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "inherited"]


def test_a_population_larger_than_memory_trains_in_smaller_stacks(train: Any, tmp_path: Path) -> None:
    """Four lanes do not fit into the memory of the device, two do."""
    result = train(
        *POPULATION, "hydra.sweeper.population=6", "hydra.launcher.fuse=4", "model._target_=own_parts.Hungry",
        "optim.lr=tag(log,interval(1e-3,1e-1))", "data.batch_size=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "members do not fit into memory" in result.stdout
    assert states(tmp_path / "s") == dict.fromkeys(range(6), "done")
    assert inherited(tmp_path / "s")


def test_perturbed_values_keep_their_range_and_type_and_what_cannot_be_stacked_is_named(
    train: Any, tmp_path: Path
) -> None:
    result = train(
        *POPULATION, "hydra.sweeper.population=4", "hydra.launcher.fuse=2", "optim.lr=interval(0.01,0.011)",
        "hook.logger.interval=range(2,5)", "hydra.sweeper.seed=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert states(tmp_path / "s") == dict.fromkeys(range(4), "done")
    changed = 0
    for record in inherited(tmp_path / "s"):
        values = dict(line.split("=", 1) for line in record["overrides"])
        assert 0.01 <= float(values["optim.lr"]) <= 0.011
        assert values["hook.logger.interval"] in ("2", "3", "4")
        kept = dict(line.split("=", 1) for line in Manifest.open(tmp_path / "s").entries[record["source"]].overrides)
        changed += kept["hook.logger.interval"] != values["hook.logger.interval"]
    assert changed, "an interval was perturbed"
    assert "the two differ in hook.logger.interval)" in result.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["optim.lr=interval(1e-3,1e-1)", "hydra.sweeper.explore={optim.betas: perturb}"], "a key that varies"),
        (["optim.lr=interval(1e-3,1e-1)", "hydra.sweeper.factors=[0.8,0.9]"], "one below 1 and one above"),
        (["optim.lr=interval(-1,-0.5)"], "optim.lr: -0."),
        (["optim.lr=interval(1e-3,1e-1)", "hydra.sweeper.population=many"], "an integer of at least 2"),
    ],
)
def test_a_wrong_population_is_refused_before_anything_starts(
    train: Any, tmp_path: Path, given: list[str], message: str
) -> None:
    result = train(*POPULATION, *given)
    assert result.returncode == 2, result.stdout
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("s/*/metrics.jsonl"))


def test_data_that_ends_early_trains_without_lanes(train: Any, tmp_path: Path) -> None:
    """It states more samples than it has: the epochs end for all members together, and each job trains all of them."""
    ends = "_target_: torch.utils.data.DataLoader, dataset: {_target_: own_parts.Ends}"
    data = [
        "data=loaders", f"data.train={{{ends}, batch_size: 4}}", f"data.val={{{ends}, batch_size: 20}}",
        "data.spec={num_classes: 2, in_features: 2}",
    ]  # fmt: skip
    result = train("hydra.launcher.fuse=2", "optim.lr=1e-3,1e-2,1e-1", "loop.max_epochs=2,3", data=data)
    assert result.returncode == 0, result.stderr
    assert states(tmp_path / "s") == dict.fromkeys(range(6), "done")
    for num in range(6):
        steps = [json.loads(line).get("step", 0) for line in (tmp_path / f"s/{num}/metrics.jsonl").open()]
        assert max(steps) == 4 * (2 + num % 2), "four batches an epoch"
