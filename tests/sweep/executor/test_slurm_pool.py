"""The refusals of Slurm, whose commands are scripts here; tests/cluster has a real Slurm."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import until

from trainyard.errors import TrainyardError
from trainyard.quoting import shell_override
from trainyard.sweep.executor import slurm as executor
from trainyard.sweep.executor.slurm import Resources, SlurmPool
from trainyard.sweep.executor.slurm_commands import SlurmError

POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A function that writes one of Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, body: str) -> None:
        part = folder / f"{name}.part"
        part.write_text(f"#!/bin/sh\n{body}\n")
        part.chmod(0o755)
        part.replace(folder / name)  # a pool may call it at this moment

    for name in ("squeue", "scancel", "sinfo"):
        write(name, "exit 0")
    return write


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "qos specification. Check {}qos."),
        ("sbatch: error: Invalid feature specification", "Invalid feature specification. Check {}constraint."),
        (
            "sbatch: error: Invalid account or account/partition combination specified",
            "combination specified. Check {}partition, {}account.",
        ),
        (
            "sbatch: unrecognized option '--nodlist=n1'\nTry 'sbatch --help' for more information",
            "settings: unrecognized option '--nodlist=n1'. Check {}additional_parameters.",
        ),
        ("sbatch: error: Unspecified error", "Slurm rejects agents with these settings: Unspecified error."),
    ],
)
def test_a_refusal_names_the_setting(slurm: Callable[[str, str], None], tmp_path: Path, said: str, told: str) -> None:
    slurm("sbatch", f'printf "%s\\n" "{said}" >&2; exit 1')
    with pytest.raises(TrainyardError) as error:
        SlurmPool(tmp_path / "sweep", Resources(), 1).check()
    assert str(error.value).endswith(told.replace("{}", "hydra.launcher."))


def test_a_head_outlasts_a_controller_that_does_not_respond(
    slurm: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_SHORTEST", 0.0)
    silent = "echo 'error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    for name in ("sbatch", "squeue", "scancel"):
        agent = f"[ -e {tmp_path}/scancel ] || echo '12_0|PENDING||None'; " if name == "squeue" else ""
        slurm(name, f"[ -e {tmp_path}/{name} ] && {{ {agent}exit 0; }}; touch {tmp_path}/{name}; {silent}")
    lines: list[str] = []
    pool = SlurmPool(tmp_path / "sweep", Resources(), 1, lines.append)
    pool.check()
    pool.start(["true"])
    pool.close()
    assert lines == [
        "Slurm: Unable to contact slurm controller (connect failure). Trying again.",
        "Waiting for 1 agent of the previous head to end.",
    ]
    monkeypatch.setattr(executor, "_PATIENCE", 0.0)
    slurm("sbatch", f"sleep 0.01; {silent}")
    with pytest.raises(TrainyardError, match=r"could not be checked: Unable to contact .* Try again later\.$"):
        pool.check()


@pytest.mark.parametrize(
    ("command", "said", "told"),
    [
        (
            "sbatch",
            f"sbatch: error: Batch job submission failed: {POLICY}",
            f"2 agents could not be submitted to Slurm: {POLICY}. Slurm accepted these settings when the sweep started",
        ),
        ("squeue", "squeue: error: Invalid user: me", "Slurm: Invalid user: me."),
    ],
)
def test_what_is_refused_later_is_not_blamed_on_the_settings(
    slurm: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    said: str,
    told: str,
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    slurm("sbatch", "exit 0")
    pool = SlurmPool(tmp_path / "a sweep", Resources(), 2)
    pool.check()
    pool.start(["true"])
    slurm(command, f'printf "%s\\n" "{said}" >&2; exit 1')
    pool.want(2)
    found: list[TrainyardError] = []

    def ended() -> bool:
        try:
            pool.gone()
        except TrainyardError as error:
            found.append(error)
        return bool(found)

    until(ended)
    slurm("squeue", "exit 0")
    pool.close()
    assert str(found[0]).startswith(told)
    if command == "sbatch":
        resume = f"run `trainyard sweep resume '{tmp_path}/a sweep'`. To continue it with fewer agents, repeat its "
        directory = shell_override("hydra.sweep.dir", tmp_path / "a sweep")
        repeat = f"command with {directory} and a lower hydra.launcher.max_slots."
        assert str(found[0]).endswith(resume + repeat)


def test_a_head_without_the_file_of_its_application_is_continued_by_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    told = str(SlurmPool(tmp_path / "s", Resources(), 1)._not_accepted(SlurmError(POLICY), 1))
    assert f"when other jobs have ended, use the same command with hydra.sweep.dir={tmp_path}/s. To continue" in told


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("no such module.\nsrun: error: n1: task 0: Exited with exit code 1", "no such module"),
        ("srun: error: Unable to create step for job 7: Memory not available", "srun: error: Unable to create step .*"),
    ],
)
def test_agents_that_end_early_name_the_file_of_their_output(
    slurm: Callable[[str, str], None], tmp_path: Path, printed: str, told: str
) -> None:
    slurm("sbatch", "echo 7")
    pool = SlurmPool(tmp_path / "sweep", Resources(), 3)
    pool.start(["true"])
    for index in range(3):
        (tmp_path / f"sweep/slurm/7_{index}.out").write_text(f"{printed}\n")
    pool.want(3)

    def ended() -> bool:
        pool.look()
        return bool(pool.gone()) and False

    with pytest.raises(TrainyardError, match=rf"Slurm job 7_2 printed: {told}\. Its output is in .*/7_2\.out\.$"):
        until(ended)
    pool.close()


def test_the_name_of_jobs_does_not_depend_on_the_path_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "link").symlink_to("sweep")
    names = {executor.name_of(tmp_path / path) for path in ("sweep", "x/../sweep", "./sweep", "link")}
    assert len(names) == 1
    assert names != {executor.name_of(tmp_path / "other")}
