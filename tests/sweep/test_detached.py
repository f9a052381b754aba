"""The job that runs a detached sweep: what it asks Slurm for, and what is left if Slurm refuses it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import TrainyardError
from trainyard.starting import WHOLE
from trainyard.sweep.detached import head_options, submit_head
from trainyard.sweep.executor import slurm_commands
from trainyard.sweep.slurm_settings import SlurmSettings
from trainyard.sweep.submitted_head import number_of

OWN = {"job-name", "output", "open-mode", "chdir", "ntasks", "cpus-per-task", "requeue", "signal"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an `sbatch` that refuses each job for which there is a file `refuse` or `refuse-agents`.

    This process is one that was started from a script.
    """
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "train.py"), raising=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    sbatch = folder / "sbatch"
    sbatch.write_text(
        "#!/bin/sh\n"
        f'refuse={folder}/refuse; [ "$1" = --test-only ] && refuse=$refuse-agents\n'
        '[ -e "$refuse" ] && { echo "sbatch: error: Batch job submission failed: Invalid qos" >&2; exit 1; }\n'
        "echo 12\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def asked(**settings: Any) -> dict[str, Any]:
    """The options of the head's job that are those of the agents."""
    found = head_options(SlurmSettings.from_config(settings), Path("/sweep"))
    return {name: value for name, value in found.items() if name not in OWN}


def test_the_head_runs_where_the_agents_run() -> None:
    where = {"partition": "gpu", "account": "lab", "qos": "low", "constraint": "a100|h100"}
    others = {
        "exclude": "n7",
        "reservation": "course",
        "nodelist": "n[1-4]",
        "comment": "two words",
        "mail_type": "END",
    }
    expected = {**where, **{name.replace("_", "-"): value for name, value in others.items()}}
    assert asked(**where, additional_parameters=others) == expected
    assert asked(additional_parameters={"qos": "high", "container-image": "x.sqsh"}) == {
        "qos": "high",
        "container-image": "x.sqsh",
    }


def test_the_head_requests_no_resources_of_the_agents() -> None:
    requests = {
        "gpus": 2, "gres": "gpu:2", "gpu_bind": "closest", "tres_per_task": "gres/gpu:1", "mem_per_gpu": "8G",
        "mem_per_cpu": "2G", "cpus_per_gpu": 4, "ntasks_per_node": 1, "nodes": 2, "exclusive": True, "tmp": "10G",
        "licenses": "matlab", "time_min": 5, "threads_per_core": 1, "hint": "nomultithread", "error": "err.txt",
    }  # fmt: skip
    settings: dict[str, Any] = {"gpus_per_node": 2, "cpus_per_task": 16, "mem_gb": 64.0, "timeout_min": 600}
    assert asked(**settings, additional_parameters=requests) == {}
    found = head_options(
        SlurmSettings.from_config(settings | {"additional_parameters": {"output": "x"}}), Path("/sweep")
    )
    assert (found["cpus-per-task"], found["ntasks"]) == (1, 1)
    assert found["output"] == "/sweep/slurm/head.out", "`trainyard sweep attach` reads it"


def test_the_script_of_the_head(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as `trainyard.app.main` sets it
    monkeypatch.setenv(WHOLE, "")
    directory = tmp_path / "a sweep"
    more = {"comment": "two words", "spread_job": True, "no_kill": False}
    settings = SlurmSettings.from_config(
        {"constraint": "a100&ib", "setup": ["module load cuda"], "additional_parameters": more}
    )
    assert "Slurm job 12 runs this sweep." in submit_head(settings, directory)
    assert number_of(directory) == "12"
    lines = (directory / "slurm" / "head.sh").read_text().splitlines()
    for line in ("--constraint='a100&ib'", "--comment='two words'", "--spread-job", "--cpus-per-task=1", "--requeue"):
        assert f"#SBATCH {line}" in lines
    assert f"#SBATCH --output='{directory}/slurm/head.out'" in lines
    assert not any("no-kill" in line for line in lines)
    assert "module load cuda" in lines
    assert "export HYDRA_FULL_ERROR=0" in lines, "the head shows tracebacks only if the user has requested them"
    assert any(line.endswith("hydra.launcher.detach=false &") for line in lines)


def test_a_refused_head_leaves_nothing(slurm: Path, tmp_path: Path) -> None:
    (slurm / "refuse").touch()
    with pytest.raises(TrainyardError, match=r"could not be submitted: Invalid qos\. This job requests"):
        submit_head(SlurmSettings(), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "manifest.jsonl").touch()
    with pytest.raises(TrainyardError, match="could not be submitted"):
        submit_head(SlurmSettings(), tmp_path / "sweep")
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["manifest.jsonl"]


def test_the_earlier_head_is_known_until_slurm_accepts_the_next(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "sweep"
    files = {"head": "11", "head.sh": "#!/bin/bash\n", "head.out": "Interrupted.\n"}
    (directory / "slurm").mkdir(parents=True)
    for name, content in files.items():
        (directory / "slurm" / name).write_text(content)
    monkeypatch.setattr(slurm_commands, "queued", lambda number: None)
    for refused in ("refuse-agents", "refuse"):
        (slurm / refused).touch()
        with pytest.raises(TrainyardError, match="Invalid qos"):
            submit_head(SlurmSettings(), directory)
        (slurm / refused).unlink()
        assert {path.name: path.read_text() for path in (directory / "slurm").iterdir()} == files
    submit_head(SlurmSettings(), directory)
    assert number_of(directory) == "12"
    assert (directory / "slurm" / "head.out").read_text() == ""


def test_agents_that_slurm_refuses_are_found_before_the_head_is_submitted(slurm: Path, tmp_path: Path) -> None:
    (slurm / "refuse-agents").touch()
    with pytest.raises(TrainyardError, match="Slurm rejects agents with these settings: Invalid qos"):
        submit_head(SlurmSettings(), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
