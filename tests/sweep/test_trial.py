"""Trial of jobs in a worker before the first of them starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from waiting import LIMIT, until

from trainyard.config.distinct import DistinctConfigs, TrialResult
from trainyard.sweep import trial
from trainyard.sweep.entry import Entry
from trainyard.sweep.errors import InterruptedSweepError
from trainyard.sweep.executor import LocalExecutor
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job
from trainyard.sweep.run_tasks import TaskResults, run_tasks
from trainyard.sweep.sweepable import SweepableTask
from trainyard.sweep.trial import Trials, Tried

ROOT = Path(__file__).parents[2]
SMALL = ["-m", "data=rings", "data.num_samples=60", "loop.max_epochs=1", "model.hidden=[8]", "tracker=none"]
APP = """
import atexit, sys
from trainyard.app import main
atexit.register(lambda: print("torch in the main process:", "torch" in sys.modules))
main(config_path={conf!r})
"""
OWN = """
import os
import hydra
from trainyard.config.distinct import TrialResult
from trainyard.sweep.sweepable import SweepableTask

class App(SweepableTask):
    tries = True

    def __call__(self, cfg):
        return cfg.x

    def check(self, config):
        return {"x": config.x}

    def try_jobs(self, configs):
        if configs.values(0)["x"] == 0:
            os.kill(os.getpid(), 9)
        return TrialResult(["x: odd" if configs.values(n)["x"] % 2 else None for n in range(len(configs.jobs))])

hydra.main(version_base="1.3", config_path=None)(App())()
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    (tmp_path / "run.py").write_text(APP.format(conf=str(ROOT / "conf")))
    (tmp_path / "own.py").write_text(OWN)

    def run(script: str, *arguments: str) -> Any:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
        environment = clean | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "500", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, script, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=LIMIT, check=False,
        )  # fmt: skip

    return run


def test_values_are_refused_in_one_report(run: Any, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    result = run(
        "run.py", *SMALL, "seed=0,1", "optim.lr=0.1,-1", "objective=val/accuracy,val/acuracy", "hydra.sweep.dir=s"
    )
    assert result.returncode == 2, result.stdout
    assert result.stderr.splitlines() == [
        "Nothing was started.",
        "objective: No metric named 'val/acuracy'. This run computes val/accuracy, val/top5, val/loss. "
        "Did you mean 'val/accuracy'?",
        "    in 2 of 8 jobs, first in #1: seed=0 optim.lr=0.1 objective=val/acuracy",
        "optim.lr: -1 is invalid. Expected a number of at least 0. Adam says: Invalid learning rate: -1.",
        "    in 4 of 8 jobs, first in #2: seed=0 optim.lr=-1 objective=val/accuracy",
    ]
    assert set(tmp_path.iterdir()) == before
    assert "torch in the main process: False" in result.stdout


def test_a_sweep_whose_main_process_has_no_torch(run: Any, tmp_path: Path) -> None:
    result = run("run.py", *SMALL, "seed=0,1", "hydra.sweep.dir=s", "hydra.launcher.fuse=off")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "s/results.csv").exists()
    assert "torch in the main process: False" in result.stdout


def test_an_application_of_its_own(run: Any, tmp_path: Path) -> None:
    refused = run("own.py", "-m", "+x=2,3,4,5", "hydra/launcher=local", "hydra.sweep.dir=s")
    assert refused.returncode != 0
    assert "in 2 of 4 jobs, first in #1: x=3" in refused.stderr
    assert not (tmp_path / "s/manifest.jsonl").exists()
    killed = run("own.py", "-m", "+x=0,1", "hydra/launcher=local", "hydra.sweep.dir=s")
    assert killed.returncode == 0, killed.stderr
    assert "The check of the jobs before the start failed: " in killed.stdout
    assert ". The sweep continues without this check.\n" in killed.stdout


class Waiting(SweepableTask):
    """Tries jobs until a file exists, and finds errors."""

    tries = True

    def __init__(self, file: Path, error: str | None = None) -> None:
        self.file, self.error = file, error

    def try_jobs(self, configs: DistinctConfigs) -> TrialResult:
        until(self.file.exists)
        return TrialResult([self.error] * len(configs.jobs))


def touch(file: Path) -> bool:
    file.touch()
    return True


def touch_and_wait(file: Path) -> None:
    file.touch()
    until(lambda: False)


def tried(application: SweepableTask, probe: Task, manifest: Manifest | None = None) -> Tried:
    values = {"lr": 0.1}
    hydra = {"job": {"chdir": False, "env_set": {}, "name": "t"}, "job_logging": {}, "verbose": False}
    config = OmegaConf.create({**values, "hydra": {**hydra, "output_subdir": None, "runtime": {"choices": {}}}})
    executor = LocalExecutor([Slot(0), Slot(1)], preload=())
    executor.start()
    try:
        trials = Trials(application, executor, executor, manifest or Manifest(Path("manifest.jsonl")))
        return trials.run([Job(0, ("lr=0.1",), config, Path("0"), values)], [probe])
    finally:
        executor.close()


def test_probes_run_at_the_same_time_as_the_trial(tmp_path: Path) -> None:
    found = tried(Waiting(tmp_path / "probed"), Task(1, touch, tmp_path / "probed"))
    assert (found.errors, [outcome.value for outcome in found.probes]) == ([], [True])


def test_an_invalid_job_ends_the_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[TaskResults] = []

    def run(*arguments: Any) -> TaskResults:
        results.append(run_tasks(*arguments))
        return results[-1]

    monkeypatch.setattr(trial, "run_tasks", run)
    found = tried(Waiting(tmp_path / "probed", "lr: odd"), Task(1, touch_and_wait, tmp_path / "probed"))
    assert [(job.num, str(error)) for job, error in found.errors] == [(0, "lr: odd")]
    assert not found.probes
    assert [outcome.state for outcome in results[0].outcomes] == ["done", "interrupted"]


@pytest.mark.parametrize(
    ("has_jobs", "told"),
    [
        (False, "Interrupted before the first job started. To start the sweep, repeat the command."),
        (
            True,
            "Interrupted before the next jobs started. To continue the sweep, use the same command with "
            "hydra.sweep.dir=multirun/s.",
        ),
    ],
)
def test_an_interrupted_trial_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_jobs: bool, told: str
) -> None:
    monkeypatch.setattr(trial, "run_tasks", lambda *arguments: TaskResults([], signal.SIGINT))
    manifest = Manifest(Path("multirun/s/manifest.jsonl"))
    if has_jobs:
        manifest.entries[0] = Entry(["lr=0.1"])
    with pytest.raises(InterruptedSweepError) as error:
        tried(Waiting(tmp_path / "probed"), Task(1, touch, tmp_path / "probed"), manifest)
    assert (str(error.value), error.value.status) == (told, 130)
