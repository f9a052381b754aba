"""The next step after a full disk: a training is resumed by its command; an evaluation or quick check is repeated."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from trainyard import command
from trainyard.catalog.again import CONFIGS
from trainyard.config.current_job import current_job
from trainyard.files import DirectoryGoneError, DiskFullError, next_step
from trainyard.run import ranks
from trainyard.run.rank_job import RankJob

RUN = "use the same command with 'hydra.run.dir=\"outputs/a b\"' resume=true"
AGAIN = "repeat the command in another directory"


@pytest.mark.parametrize(
    ("mode", "config", "expected"),
    [
        (RunMode.RUN, {}, RUN),
        (RunMode.RUN, {"mode": "test"}, f"{AGAIN} (hydra.run.dir)"),
        (RunMode.RUN, {"quick": True}, f"{AGAIN} (hydra.run.dir)"),
        (RunMode.MULTIRUN, {}, "use the same command with hydra.sweep.dir=multirun/x resume=true"),
        (RunMode.MULTIRUN, {"quick": True}, f"{AGAIN} (hydra.sweep.dir)"),
    ],
)
def test_of_a_run_that_no_sweep_resumes(mode: RunMode, config: Any, expected: str) -> None:
    """Also of a job of `hydra.launcher.debug=true` or of another launcher. A directory below the folder of the command
    is relative to it."""
    places = {"runtime": {"cwd": "/project", "output_dir": "/project/outputs/a b"}, "sweep": {"dir": "multirun/x"}}
    with current_job(OmegaConf.create({"hydra": {"mode": mode, **places}})):
        assert command._next_step(OmegaConf.create(config)) == expected


@pytest.mark.parametrize("config", [{}, {"mode": "test"}])
def test_of_a_reproduction(config: Any, tmp_path: Path) -> None:
    """Also after Ctrl-C: its config is in a temporary folder, and its directory is an argument of `reproduce`."""
    sources = [
        {"path": "hydra.conf", "schema": "pkg", "provider": "hydra"},
        {"path": f"/tmp/{CONFIGS}x1", "schema": "file", "provider": "main"},
    ]
    runtime = {"cwd": "/project", "output_dir": str(tmp_path), "config_sources": sources}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.pt").touch()
    with current_job(OmegaConf.create({"hydra": {"mode": RunMode.RUN, "runtime": runtime}})):
        then = "repeat `trainyard reproduce` in another directory (--to)"
        assert command._next_step(OmegaConf.create(config)) == then
        assert ranks.go_on(tmp_path) == f"{then}."


def test_ranks_have_that_of_the_process_that_starts_them() -> None:
    with next_step("repeat the command"):
        job = RankJob(OmegaConf.create({}), print)
        with next_step("do something else"):
            assert str(DiskFullError("file", OSError(28, "full"))).endswith("; then do something else.")
    assert pickle.loads(pickle.dumps(job)).then == "repeat the command"
    assert str(DiskFullError("file", OSError(28, "full"))).endswith("resume=true continues from the last checkpoint.")


def test_a_command_that_is_repeated_needs_no_directory_that_was_moved() -> None:
    with next_step(AGAIN):
        assert str(DirectoryGoneError("run", "last.pt")).endswith(f"cannot be saved. R{AGAIN[1:]}.")
    with next_step(RUN):
        assert str(DirectoryGoneError("run", "last.pt")).endswith(f"If it was moved, move it back; then {RUN}.")
