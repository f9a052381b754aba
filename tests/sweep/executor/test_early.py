"""An agent that is started before its sweep is composed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import LIMIT, until_gone

from trainyard.starting import sweeps_here
from trainyard.sweep.executor import LocalExecutor, early
from trainyard.sweep.executor.agent import Agent
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task
from trainyard.sweep.run_tasks import run_tasks

ROOT = Path(__file__).parents[3]


@pytest.fixture
def start() -> Iterator[Callable[[], Agent]]:
    def start() -> Agent:  # in the test, since pytest writes its phase into the environment
        early.start_early(["json"], Slot(0).threads)
        return early._waiting[0]

    yield start
    early.end_early()


def test_a_sweep_uses_it(start: Callable[[], Agent]) -> None:
    started = start()
    executor = LocalExecutor([Slot(0)], preload=["json"])
    executor.start()
    try:
        assert executor._agent is started
        (outcome,) = run_tasks(executor, [Task(0, str, 7)]).outcomes
        assert outcome.value == "7"
    finally:
        executor.close()
    until_gone(started._process.pid)


def test_one_that_nobody_takes_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "PATIENCE", 0.0)
    early.start_early(["json"], 1)
    process = early._waiting[0]._process
    assert process.wait(LIMIT) == 0
    agent = early.take(["json"], 1)
    try:
        assert agent._process is not process
        while not agent.ready:
            agent.receive(LIMIT)
    finally:
        agent.close()


def test_one_that_was_taken_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "PATIENCE", 1.0)
    early.start_early(["json"], Slot(0).threads)
    executor = LocalExecutor([Slot(0)], preload=["json"])
    executor.start()
    try:
        agent = executor._agent
        time.sleep(1.5)  # longer than it would wait
        (outcome,) = run_tasks(executor, [Task(0, str, 7)]).outcomes
        assert outcome.value == "7"
        assert executor._agent is agent
    finally:
        executor.close()


@pytest.mark.parametrize("change", ["preload", "threads", "environment", "path"])
def test_one_that_would_start_otherwise_now_is_ended(
    start: Callable[[], Agent], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    started = start()
    preload, threads = ["json"], Slot(0).threads
    match change:
        case "preload":
            preload = ["csv"]
        case "threads":
            threads += 1
        case "environment":
            monkeypatch.setenv("TRAINYARD_TEST", "1")
        case "path":
            monkeypatch.syspath_prepend("/nowhere")
    agent = early.take(preload, threads)
    try:
        assert agent is not started
        assert started._process.poll() is not None
    finally:
        agent.close()


def test_one_that_nobody_uses_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "from trainyard.sweep.executor import early\n"
        "early.start_early(['torch'], 1)\n"
        "print(early._waiting[0]._process.pid)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=LIMIT
    )
    until_gone(int(done.stdout))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "seed=0,1"], True),
        (["--multirun", "seed=0,1", "hydra.launcher.fuse=off"], True),
        (["seed=0"], False),
        ([], False),
        (["-m", "--cfg", "job"], False),
        (["-m", "--help"], False),
        (["-m", "seed=0,1", "hydra/launcher=slurm"], False),
        (["-m", "seed=0,1", "hydra.launcher.debug=true"], False),
    ],
)
def test_commands_that_sweep_here(arguments: list[str], expected: bool) -> None:
    assert sweeps_here(arguments) is expected


def test_a_command_line_of_a_sweep_starts_one_agent(tmp_path: Path) -> None:
    """The environment and the path when the sweep starts are those of the early agent."""
    script = tmp_path / "run.py"
    script.write_text(
        "import trainyard.sweep.executor.agent as agent\n"
        "launch, count = agent.Agent._launch, []\n"
        "agent.Agent._launch = lambda self: (count.append(1), launch(self))\n"
        "from trainyard.app import main\n"
        "try:\n"
        f"    main({str(ROOT / 'conf')!r})\n"
        "finally:\n"
        "    print('agents:', len(count))\n"
    )
    clean: dict[str, Any] = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    small = ["-m", "data=rings", "data.num_samples=60", "loop.max_epochs=1", "model.hidden=[8]", "tracker=none"]
    done = subprocess.run(
        [sys.executable, str(script), *small, "seed=0,1", "hydra.sweep.dir=s"], cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "agents: 1" in done.stdout
