"""Garbage collection while a command starts."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import LIMIT

from trainyard import garbage

ROOT = Path(__file__).parents[1]
SMALL = ["data=rings", "data.num_samples=60", "loop.max_epochs=1", "model.hidden=[8]", "tracker=none"]
HOOK = """
import gc
from trainyard.hooks import Hook

class Tells(Hook):
    stackable = True

    def before_train(self, runner):
        print("thresholds:", gc.get_threshold(), gc.isenabled())
"""


@pytest.fixture(autouse=True)
def _thresholds_of_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    garbage._usual.clear()
    gc.set_threshold(*before)
    gc.unfreeze()


def test_the_thresholds_of_before_return() -> None:
    gc.set_threshold(700, 11, 12)
    garbage.collect_rarely()
    garbage.collect_rarely()
    assert gc.get_threshold()[0] > 10_000
    garbage.collect_as_usual()
    assert gc.get_threshold() == (700, 11, 12)
    gc.set_threshold(500)
    garbage.collect_as_usual()
    assert gc.get_threshold()[0] == 500, "it changes nothing where collections are not rare"


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1", "hydra.launcher.fuse=off"], ["-m", "seed=0,1"]])
def test_a_training_collects_as_usual(tmp_path: Path, sweep: list[str]) -> None:
    (tmp_path / "tells.py").write_text(HOOK)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    path = os.pathsep.join(map(str, (ROOT / "src", tmp_path)))
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *sweep, *SMALL, "+hook.tells._target_=tells.Tells"], cwd=tmp_path,
        env=clean | {"PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = [done.stdout, *(file.read_text() for file in tmp_path.rglob("*.log"))]
    told = [line for text in outputs for line in text.splitlines() if line.startswith("thresholds:")]
    usual = subprocess.run(
        [sys.executable, "-c", "import gc; print(gc.get_threshold())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert told
    assert {*told} == {f"thresholds: {usual} True"}
