"""A full disk ends the run that it concerns, and no other."""

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOOK = """
import resource
from pathlib import Path
from trainyard.hooks import Hook

class Full(Hook):
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
