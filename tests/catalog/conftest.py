"""Runs as their trainers write them: `run.json`, `config.yaml`, the journal, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainyard.catalog import StoredRun
from trainyard.track import Journal, RunInfo

CONFIG = {
    "seed": 0,
    "objective": "val/accuracy",
    "direction": "maximize",
    "model": {"_target_": "trainyard.models.MLP", "hidden": [8]},
    "optim": {"lr": 0.001},
    "loop": {"max_epochs": 3},
}
MakeRun = Callable[..., StoredRun]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run below `tmp_path`; the values of `val/accuracy` come one an epoch, of 10 iterations each."""

    def make(
        name: str = "one",
        accuracies: Sequence[float] = (0.5, 0.9, 0.7),
        status: Any = "FINISHED",
        checkpoints: Sequence[str] = (),
        folder: str | None = None,
        **changes: Any,
    ) -> StoredRun:
        directory = tmp_path / (folder or name)
        (directory / "checkpoints").mkdir(parents=True)
        info = RunInfo(name=name, params={"model": "mlp"}, facts={"git.commit": "c0ffee", "version.torch": "2.0"})
        info.write(directory)
        config = {**CONFIG, **changes}
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        with Journal(directory) as journal:
            journal.status("RUNNING")
            for epoch, value in enumerate(accuracies, 1):
                values = {"val/accuracy": value, "val/loss": 1 - value}
                journal.metrics(10 * epoch, {"train/loss": 1 / epoch}, epoch - 1)
                journal.metrics(10 * epoch, values, epoch)
            if status != "RUNNING":
                journal.status(status)
        for checkpoint in checkpoints:
            (directory / "checkpoints" / checkpoint).write_bytes(b"x" * 1000)
        return StoredRun(directory, info)

    return make
