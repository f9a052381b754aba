"""The `trainyard` command, in this process; and a folder with a run and a sweep that were trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from click.testing import CliRunner
from waiting import LIMIT

from trainyard.cli import main

ROOT = Path(__file__).parents[2]
QUICK = ["data=rings", "data.num_samples=300", "loop.max_epochs=2", "model.hidden=[8]", "tracker=none"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of two epochs and a sweep of two jobs were trained."""
    folder = tmp_path_factory.mktemp("trained")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    for flags in ([], ["-m", "optim.lr=0.001,0.01"]):
        command = [sys.executable, str(ROOT / "train.py"), *flags[:1], *QUICK, *flags[1:]]
        done = forked.run(command, cwd=folder, env=environment, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def trainyard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call `trainyard …`: its status, its output (parsed, for --json), and what it said on standard error.

    A command that would take the place of this process runs as another process.
    """

    def execve(program: str, command: Any, environment: Any) -> None:
        sys.exit(subprocess.run(command, env=environment).returncode)

    monkeypatch.setattr(os, "execve", execve)

    def call(*arguments: Any, cwd: Path, answer: str = "") -> tuple[int, Any, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "500")
        capsys.readouterr()
        with CliRunner().isolation(input=answer) as (out, err, _):
            try:
                main([str(argument) for argument in arguments])
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
            sys.stderr.flush()
            shown, said = out.getvalue().decode(), err.getvalue().decode()
        return status, json.loads(shown) if "--json" in arguments and shown else shown, said

    return call
