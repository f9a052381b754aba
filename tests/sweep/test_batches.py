"""Sweepers that launch batch after batch: all batches make one sweep."""

import csv
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import forked
import pytest
from waiting import LIMIT

from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).parents[2]
SMALL = ["data=rings", "data.num_samples=200", "loop.max_epochs=2", "model.hidden=[8]", "hydra.sweep.dir=s"]

FAILING = """
from trainyard.hooks import Hook
class Fail(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if runner.seed in (1, 4):
            raise ArithmeticError("not this seed")
"""

# What sweepers like Optuna's do: check a batch, launch it, and choose the next by what it gave.
LEARNER = """
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Learner(Sweeper):
    def __init__(self, **kwargs):
        pass

    def setup(self, *, hydra_context, task_function, config):
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        best, first = 0.03, 0
        for _ in range(3):
            rates = [best / 3, best * 2]
            batch = [[*arguments, f"optim.lr={rate}"] for rate in rates]
            self.validate_batch_is_legal(batch)
            returns = self.launcher.launch(batch, initial_job_idx=first)
            first += len(returns)
            _, best = max((float(result.return_value), rate) for result, rate in zip(returns, rates, strict=True))
"""
LEARN = "hydra.sweeper={_target_: hydra_plugins.learner.Learner}"


@pytest.fixture
def sweep(tmp_path: Path) -> Any:
    (tmp_path / "failing.py").write_text(FAILING)
    (tmp_path / "hydra_plugins/learner").mkdir(parents=True)
    (tmp_path / "hydra_plugins/learner/__init__.py").write_text(LEARNER)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    own = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", tmp_path))), "OMP_NUM_THREADS": "1", "COLUMNS": "150"}

    def run(*arguments: Any) -> Any:
        command = [sys.executable, str(ROOT / "train.py"), "-m", *SMALL, *arguments]
        return forked.run(command, cwd=tmp_path, env=clean | own, timeout=LIMIT, starts=tmp_path / "starts")

    return run


def _started(folder: Any, what: Any) -> Any:
    commands = map(json.loads, (folder / "starts").read_text().splitlines())
    return sum(what in " ".join(command) for command in commands)


def _states(folder: Any) -> Any:
    return {num: entry.state for num, entry in Manifest.open(folder / "s").entries.items()}


def _ranked(folder: Any) -> Any:
    with (folder / "s/results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_failing_job_does_not_end_the_later_batches(sweep: Any, tmp_path: Path) -> None:
    failing = "+hook.f._target_=failing.Fail"
    result = sweep("seed=0,1,2,3,4", "hydra.sweeper.max_batch_size=2", failing)
    assert result.returncode == 1, result.stderr
    assert _states(tmp_path) == {0: "done", 1: "failed", 2: "done", 3: "done", 4: "failed"}
    assert "2 of 5 jobs did not finish: #1, #4." in result.stderr
    assert [row["job"] for row in _ranked(tmp_path)[3:]] == ["1", "4"]
    assert len(_ranked(tmp_path)) == 5
    assert result.stdout.count("Report: ") == 1
    assert _started(tmp_path, "executor.agent_process import serve") == 1
    assert _started(tmp_path, "-m trainyard.track.shipper") == 1


def test_fail_fast_ends_the_later_batches(sweep: Any, tmp_path: Path) -> None:
    result = sweep(
        "seed=0,1,2,3", "hydra.sweeper.max_batch_size=2", "hydra.launcher.fail_fast=true", "tracker=none",
        "+hook.f._target_=failing.Fail",
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert set(_states(tmp_path)) == {0, 1}
    assert _states(tmp_path)[1] == "failed"
    assert {row["job"] for row in _ranked(tmp_path)} == {"0", "1"}


def test_a_wrong_later_batch_ends_the_sweep_with_what_there_is(sweep: Any, tmp_path: Path) -> None:
    result = sweep("seed=0,x", "hydra.sweeper.max_batch_size=1", "tracker=none")
    assert result.returncode == 2
    assert "None of these jobs was started." in result.stderr
    assert [row["job"] for row in _ranked(tmp_path)] == ["0"]


@pytest.mark.parametrize("size", ["null", "2"])
def test_a_smaller_grid_in_the_directory_of_a_sweep_is_refused(sweep: Any, tmp_path: Path, size: str) -> None:
    """Also if the later batches have not started: a job of the first one has failed."""
    own = [f"hydra.sweeper.max_batch_size={size}", "hydra.launcher.fail_fast=true", "tracker=none"]
    failing = "+hook.f._target_=failing.Fail"
    assert sweep(*own, "optim.lr=0.01,0.02", "seed=0,1,2", failing).returncode == 1
    assert len(_states(tmp_path)) == (2 if size == "2" else 6)
    before = {path: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.is_file()}
    for values, told in (
        (["optim.lr=0.01", "seed=0,1,2"], "contains a sweep of 6 jobs, but this command has only 3 jobs."),
        (["optim.lr=0.01", "seed=0,1"], "contains a sweep of 6 jobs, but this command has only 2 jobs."),
        (["optim.lr=0.01,0.02", "seed=0,1"], "contains "),
    ):
        result = sweep(*own, *values, failing)
        assert result.returncode == 2, result.stderr
        assert told in " ".join(result.stderr.split())
    assert {path: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.is_file()} == before


def test_the_batches_of_another_grid_are_refused_before_the_first_one(sweep: Any, tmp_path: Path) -> None:
    own = ["hydra.sweeper.max_batch_size=2", "tracker=none"]
    assert sweep(*own, "optim.lr=0.01,0.02", "seed=0,1,2").returncode == 0
    before = (tmp_path / "s/multirun.yaml").read_text()
    result = sweep(*own, "optim.lr=0.01,0.02,0.03", "seed=0,1")
    assert result.returncode == 2, result.stderr
    assert "contains another sweep: its job 2" in result.stderr
    assert "already done" not in result.stdout
    assert (tmp_path / "s/multirun.yaml").read_text() == before
    result = sweep(*own, "optim.lr=0.01,0.02,0.03", "seed=0,1,2")
    assert result.returncode == 0, result.stderr
    assert _states(tmp_path) == dict.fromkeys(range(9), "done")


def test_hydras_basic_sweeper_ends_with_the_batch_that_fails(sweep: Any, tmp_path: Path) -> None:
    result = sweep(
        "seed=0,1,2,3", "hydra/sweeper=basic", "hydra.sweeper.max_batch_size=2", "tracker=none",
        "+hook.f._target_=failing.Fail",
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert {row["job"] for row in _ranked(tmp_path)} == {"0", "1"}


def test_a_sweeper_that_learns(sweep: Any, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    result = sweep(LEARN)
    assert result.returncode == 0, result.stderr
    assert _states(tmp_path) == dict.fromkeys(range(6), "done")
    assert {row["job"] for row in _ranked(tmp_path)} == set("012345")
    assert result.stdout.count("Report: ") == 1
    assert "6 runs uploaded below 'sweep" in result.stdout
    assert _started(tmp_path, "executor.agent_process import serve") == 1
    assert _started(tmp_path, "-m trainyard.track.shipper") == 1
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("trainyard").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    assert parent.data.tags["jobs"] == "6"
    assert Counter(run.data.tags.get("mlflow.parentRunId") for run in runs) == {None: 1, parent.info.run_id: 6}
    assert len({run.data.params["optim.lr"] for run in runs if run is not parent}) == 6

    again = sweep(LEARN)  # it chooses the same again, since it is told the same
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("2 already done; 0 to run") == 3
    (tmp_path / "s/results.csv").unlink()
    resume = [sys.executable, "-m", "trainyard", "sweep", "resume", str(tmp_path / "s")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", tmp_path)))}
    resumed = forked.run(resume, env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert len(_ranked(tmp_path)) == 6


def test_a_sweeper_that_learns_is_shown_its_first_batch_only(sweep: Any, tmp_path: Path) -> None:
    result = sweep(LEARN, "hydra.launcher.dry_run=true")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 jobs; 2 to run") == 1
    assert not (tmp_path / "s").exists()


def test_a_sweeper_that_learns_ends_after_the_job_that_is_debugged(sweep: Any, tmp_path: Path) -> None:
    result = sweep(LEARN, "tracker=none", "hydra.launcher.debug=true")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("hydra.launcher.debug: running only job 0, in this process") == 1
    assert [path.name for path in (tmp_path / "s").iterdir() if path.is_dir()] == ["0"]


def test_optuna(sweep: Any, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    result = sweep(
        "hydra/sweeper=optuna", "optim.lr=tag(log, interval(1e-4, 1e-1))", "hydra.sweeper.direction=${direction}",
        "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler.seed=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert _states(tmp_path) == dict.fromkeys(range(6), "done")
    assert len({row["optim.lr"] for row in _ranked(tmp_path)}) == 6
    assert _started(tmp_path, "executor.agent_process import serve") == 1
    assert (
        "best_value: " + json.dumps(float(_ranked(tmp_path)[0]["objective"]))
        in (tmp_path / "s/optimization_results.yaml").read_text()
    )


@pytest.mark.parametrize("size", ["0", "abc", "1.5"])
def test_a_batch_size_that_cannot_be(tmp_path: Path, size: str) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "-m", "seed=0,1", f"hydra.sweeper.max_batch_size={size}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    result = forked.run(command, cwd=tmp_path, env=environment)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert f"hydra.sweeper.max_batch_size: {size!r}".replace("'0'", "0").replace("'1.5'", "1.5") in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pruner", ["asha", "3"])
def test_a_pruner_that_is_not_an_option_of_its_group(sweep: Any, pruner: str, tmp_path: Path) -> None:
    result = sweep("seed=0,1", f"hydra.sweeper.pruner={pruner}", "hydra.sweep.dir=s")
    assert result.returncode == 2
    assert f"hydra.sweeper.pruner: {pruner}".replace("asha", "'asha'") in result.stderr
    assert "hydra/sweeper/pruner=none, asha" in " ".join(result.stderr.split())
    assert not (tmp_path / "s").exists()
