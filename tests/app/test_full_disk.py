"""A full disk ends the run that it concerns, and no other."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RANKS = ["strategy=ddp", "strategy.devices=2", "device=cpu"]
HOOK = """
import resource
from pathlib import Path
from trainyard.hooks import Hook

class Full(Hook):
    stackable = True

    def after_train_epoch(self, runner):
        if runner.seed == 1 and Path("full").exists():  # from here on no file of this process grows beyond that
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


def test_in_a_sweep_only_that_job_fails(train: Any, tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(HOOK)
    (tmp_path / "full").touch()
    overrides = [
        "+hook.full._target_=full.Full",
        "hydra.launcher.fuse=false",
        "hydra.sweep.dir=sweep",
        "model.hidden=[64,64]",
        "seed=0,1,2",
    ]
    path = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}"}
    done = train("-m", *overrides, env=path)
    assert done.returncode == 1
    records = [json.loads(line) for line in (tmp_path / "sweep" / "manifest.jsonl").read_text().splitlines()]
    ends = {each["num"]: each for each in records if each.get("kind") == "state" and each["state"] != "running"}
    assert {num: end["state"] for num, end in ends.items()} == {0: "done", 1: "failed", 2: "done"}
    assert "could not be written" in ends[1]["error"]
    assert "; then `trainyard sweep resume DIR` continues the sweep." in ends[1]["error"]
    assert "Traceback" not in done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "sweep" / "1").rglob(".*.tmp")] == []
    assert (tmp_path / "sweep" / "report.html").exists()

    (tmp_path / "full").unlink()
    again = train("-m", *overrides, env=path)
    assert again.returncode == 0, again.stderr


def test_a_run_is_resumed_by_its_command(train: Any, tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(HOOK)
    (tmp_path / "full").touch()
    path = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}", "COLUMNS": "500"}
    overrides = ["+hook.full._target_=full.Full", "model.hidden=[64,64]", "seed=1"]
    done = train(*overrides, "hydra.run.dir=a run", env=path)
    assert done.returncode == 1
    assert "; then use the same command with 'hydra.run.dir=\"a run\"' resume=true." in done.stderr
    (tmp_path / "full").unlink()
    again = train(*overrides, 'hydra.run.dir="a run"', "resume=true", env=path)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("how", [["hydra.launcher.fuse=2", "seed=1,2"], [*RANKS, "seed=1"]], ids=["stack", "ranks"])
def test_a_stack_and_ranks_are_resumed_by_the_sweep(train: Any, tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "full.py").write_text(HOOK)
    (tmp_path / "full").touch()
    path = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}", "COLUMNS": "500", "OMP_NUM_THREADS": "1"}
    done = train("-m", "+hook.full._target_=full.Full", "hydra.sweep.dir=sweep", "model.hidden=[64,64]", *how, env=path)
    said = done.stdout + done.stderr
    assert "could not be written" in said
    assert "; then `trainyard sweep resume DIR` continues the sweep" in said
    assert "resume=true" not in said
