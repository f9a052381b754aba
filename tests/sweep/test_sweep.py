"""Sweeps with `python train.py -m …` as a user runs them."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import forked
import pytest
from same_run import points
from waiting import LIMIT, until, until_gone

from trainyard.sweep.manifest import Manifest
from trainyard.track import read

ROOT = Path(__file__).parents[2]
SWEEP = ["-m", "data=rings", "data.num_samples=300", "loop.max_epochs=3", "model.hidden=[8]", "hydra.sweep.dir=sweep"]
GRID = ["optim.lr=0.01,0.03", "seed=0,1"]


def _environment(*folders: Any) -> Any:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    path = os.pathsep.join(map(str, (ROOT / "src", *folders)))
    return clean | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "150"}


def _command(*arguments: Any, tracker: str = "none") -> Any:
    wait = [] if tracker == "none" else [f"tracker.wait={LIMIT}"]
    return [sys.executable, str(ROOT / "train.py"), *SWEEP, f"tracker={tracker}", *wait, *arguments]


@pytest.fixture
def sweep(tmp_path: Path) -> Any:
    def run(*arguments: Any, tracker: str = "none") -> Any:
        command = _command(*arguments, tracker=tracker)
        return forked.run(command, cwd=tmp_path, env=_environment(tmp_path), timeout=LIMIT)

    return run


def test_plan_jobs_ranking_and_report(sweep: Any, tmp_path: Path) -> None:
    result = sweep(*GRID)
    assert result.returncode == 0, result.stderr
    assert "4 jobs; 4 to run" in result.stdout
    assert result.stdout.count("started  ") >= 1
    assert result.stdout.count("done     ") == 4
    folder = tmp_path / "sweep"
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    means = [float(row["mean/best/val/accuracy"]) for row in rows]
    assert means == sorted(means, reverse=True)
    for rate in {row["optim.lr"] for row in rows}:
        own = [float(row["best/val/accuracy"]) for row in rows if row["optim.lr"] == rate]
        assert own == sorted(own, reverse=True)
        assert sum(own) / 2 == pytest.approx(
            next(float(r["mean/best/val/accuracy"]) for r in rows if r["optim.lr"] == rate)
        )
    assert (folder / "report.html").stat().st_size > 1000
    for num, rate in enumerate((0.01, 0.01, 0.03, 0.03)):
        assert {value for (key, _), value in points(folder / str(num)).items() if key == "train/lr"} == {rate}

    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    again = sweep(*GRID)
    assert again.returncode == 0, "a report that cannot be written fails no sweep"
    assert "The report of the sweep could not be written: IsADirectoryError" in again.stdout + again.stderr
    assert "4 jobs, 4 already done; 0 to run" in again.stdout
    assert "started" not in again.stdout

    command = (folder / "multirun.yaml").read_text()
    other = sweep("optim.lr=0.01,0.05", "seed=0,1")
    assert other.returncode == 2
    assert "contains another sweep: its job 2" in other.stderr
    assert (folder / "multirun.yaml").read_text() == command, "which `trainyard sweep resume` repeats"


def test_a_dry_run_leaves_nothing(sweep: Any, tmp_path: Path) -> None:
    result = sweep(*GRID, "hydra.launcher.dry_run=true")
    assert result.returncode == 0, result.stderr
    assert "#3    optim.lr=0.03 seed=1" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_point_is_checked_before_the_first_starts(sweep: Any, tmp_path: Path) -> None:
    result = sweep("seed=0,1", "optim._target_=torch.optim.Adam,torch.optim.Adm")
    assert result.returncode == 2
    assert "Nothing was started." in result.stderr
    assert "Did you mean 'torch.optim.Adam'?" in result.stderr
    assert "in 2 of 4 jobs, first in #1" in result.stderr
    assert not (tmp_path / "sweep" / "manifest.jsonl").exists()


def test_one_report_tells_of_all_errors(sweep: Any, tmp_path: Path) -> None:
    result = sweep("optim=adam,sgd,nope", "optim.momentum=0.1,0.2", "seed=1,x")
    assert result.returncode == 2
    report = " ".join(result.stderr.split())
    assert report.startswith(
        "Nothing was started. optim.momentum: 'momentum' is invalid. Expected a key of optim: _target_"
    )
    assert "in 4 of 12 jobs, first in #0: optim=adam optim.momentum=0.1 seed=1" in report
    assert "seed: 'x' is invalid. Expected a non-negative integer of at most 63 bits. in 2 of 12 jobs" in report
    assert "of at most 63 bits. in 2 of 12 jobs, first in #5: optim=sgd" in report
    assert "optim: 'nope' is invalid. Expected one of adagrad, adam," in report
    assert "in 4 of 12 jobs, first in #8: optim=nope" in report
    assert "Traceback" not in report
    assert list(tmp_path.iterdir()) == []


def test_keys_of_an_option_of_the_search_path_are_in_the_report(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "added").mkdir()
    (tmp_path / "more/optim").mkdir(parents=True)
    (tmp_path / "more/optim/tiny.yaml").write_text("_target_: mine.Tiny\nspeed: 3\n")
    places = [f"--config-dir={tmp_path / 'added'}", f"hydra.searchpath=[file://{tmp_path / 'more'}]"]
    result = sweep(*places, "optim=tiny", "optim.sped=1,2")
    report = " ".join(result.stderr.split())
    assert "Expected a key of optim: _target_, speed. Did you mean 'speed'?" in report


def test_a_directory_that_cannot_be_named_is_in_the_report(sweep: Any, tmp_path: Path) -> None:
    result = sweep("seed=0,x", "hydra.sweep.subdir=${nothing}")
    assert result.returncode == 2
    report = " ".join(result.stderr.split())
    assert report.startswith("Nothing was started. hydra.sweep.subdir: Interpolation key 'nothing' not found.")
    assert "in 2 of 2 jobs, first in #0: seed=0" in report


FAILING = """
from trainyard.hooks import Hook
class Fail(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if runner.seed == 1:
            raise ArithmeticError("seed 1 is not for me")
"""


def test_a_failing_job_is_told_and_the_others_go_on(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    result = sweep("seed=0,1,2", "+hook.fail._target_=failing.Fail")
    assert result.returncode == 1
    assert "FAILED  #1 seed=1: ArithmeticError: seed 1 is not for me" in result.stdout
    assert "failing.py" in result.stdout, "the traceback"
    assert "1 of 3 jobs did not finish: #1" in result.stderr
    states = {num: entry.state for num, entry in Manifest.open(tmp_path / "sweep").entries.items()}
    assert states == {0: "done", 1: "failed", 2: "done"}


def test_in_mlflow_the_jobs_lie_below_the_sweep(sweep: Any, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    result = sweep(*GRID, "tracker.experiment_per_sweep=true", "tracker.register=rings@prod", tracker="mlflow")
    assert result.returncode == 0, result.stderr
    assert "not in MLflow" not in result.stdout
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name LIKE 'trainyard%'")
    assert experiment.name == f"trainyard/{tmp_path.name} sweep"
    page = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    assert page in result.stdout
    runs = [*client.search_runs([experiment.experiment_id])]
    means = [run for run in runs if run.data.tags.get("kind") == "configuration"]
    runs = [run for run in runs if run not in means]
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 5
    assert {run.info.run_name for run in children} == {
        f"optim.lr={rate} seed={seed}" for rate in ("0.01", "0.03") for seed in (0, 1)
    }
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {"optim.lr", "seed", "model", "optim"} <= set(children[0].data.params)
    assert "loop.max_epochs" not in children[0].data.params, "what does not vary is in the config artifact"
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"plan.txt", "results.csv", "report.html", "ranking.txt", "multirun.yaml"} <= files
    report = (tmp_path / "sweep/report.html").read_text()
    for run in (parent, *children):
        assert f"/runs/{run.info.run_id}?" in report, "also of runs that the store received after the ranking"
    first = max(means, key=lambda run: (run.data.metrics["mean/val/accuracy"], -float(run.data.params["optim.lr"])))
    own = [run for run in children if run.data.params["optim.lr"] == first.data.params["optim.lr"]]
    best = max(own, key=lambda run: (run.data.metrics["best/val/accuracy"], -int(run.data.params["seed"])))
    tags, value = parent.data.tags, best.data.metrics["best/val/accuracy"]
    assert float(tags["winner.value"]) == value
    assert float(tags["winner.mean"]) == first.data.metrics["mean/val/accuracy"]
    assert parent.data.metrics["best/val/accuracy"] == max(r.data.metrics["best/val/accuracy"] for r in children)
    winner = client.get_run(tags["winner.run"])
    assert winner.data.metrics["best/val/accuracy"] == value
    assert (
        f"](#/experiments/{experiment.experiment_id}/runs/{winner.info.run_id}?workflowType=machine_learning)"
        in tags["mlflow.note.content"]
    )
    assert "-m" in tags["command"]
    so_far = client.get_metric_history(parent.info.run_id, "best/val/accuracy")
    assert [point.step for point in so_far] == [1, 2, 3, 4]
    assert client.get_model_version_by_alias("rings", "prod").run_id == winner.info.run_id
    assert {run.data.tags["varies"] for run in children} == {run.info.run_name for run in children}
    assert {run.data.params["optim.lr"]: run.data.metrics["n"] for run in means} == {"0.01": 2, "0.03": 2}
    for mean in means:
        own = [run for run in children if run.data.params["optim.lr"] == mean.data.params["optim.lr"]]
        expected = sum(run.data.metrics["best/val/accuracy"] for run in own) / 2
        assert mean.data.metrics["mean/val/accuracy"] == pytest.approx(expected)
        assert mean.data.tags["mlflow.parentRunId"] == parent.info.run_id
    for run in children:
        assert client.get_metric_history(run.info.run_id, "val/accuracy")


def _start(tmp_path: Path, *arguments: Any) -> Any:
    return forked.Forked(
        _command(*GRID, "+hook.slow._target_=slow.Slow", *arguments), cwd=tmp_path, env=_environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


WAITING = """
import time
from pathlib import Path
from trainyard.hooks import Hook
here = Path(__file__).parent
class Slow(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        (here / "training").touch()
        while not (runner.interrupted or (here / "go").exists()):
            time.sleep(0.01)
"""
DEAF = (
    WAITING.replace("runner.interrupted or ", "")
    + """\
            if runner.interrupted:
                (here / "told").touch()
"""
)


def test_interrupted_and_finished_later(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(WAITING)
    process = _start(tmp_path)
    until((tmp_path / "training").exists, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, stderr
    assert f"run `trainyard sweep resume {tmp_path / 'sweep'}`." in " ".join(stderr.split())
    states = Counter(entry.state for entry in Manifest.open(tmp_path / "sweep").entries.values())
    assert states["interrupted"] >= 1
    assert states["done"] == 0
    told = [entry.error for entry in Manifest.open(tmp_path / "sweep").entries.values() if entry.state == "interrupted"]
    assert any("Interrupted at iteration 1." in (error or "") for error in told), told
    assert not any("hydra.run.dir" in (error or "") for error in told), "the sweep's command resumes its jobs"
    assert _statuses(tmp_path / "sweep")[-1] == "KILLED", "like the runs of its jobs"
    (tmp_path / "go").touch()
    finished = sweep(*GRID, "+hook.slow._target_=slow.Slow")
    assert finished.returncode == 0, finished.stderr
    assert {entry.state for entry in Manifest.open(tmp_path / "sweep").entries.values()} == {"done"}
    assert _statuses(tmp_path / "sweep")[-1] == "FINISHED"


def _statuses(folder: Any) -> Any:
    return [record["status"] for record, _ in read(folder / "metrics.jsonl") if record["kind"] == "status"]


def _descendants(pid: Any) -> Any:
    """The processes below one, and all in sessions that it or they began."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for children in Path("/proc").glob(f"{parent}/task/*/children"):
            with contextlib.suppress(OSError):
                new = {int(child) for child in children.read_text().split()} - found
                found |= new
                waiting += new
    return found


def test_ctrl_c_twice_leaves_nothing_running(tmp_path: Path) -> None:
    """Workers that do not end, a fork server, a shipper: after the second Ctrl-C they are gone."""
    (tmp_path / "slow.py").write_text(DEAF)
    command = _command(*GRID, "+hook.slow._target_=slow.Slow", tracker="mlflow")
    process = subprocess.Popen(
        command, cwd=tmp_path, env=_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until((tmp_path / "training").exists, process)
    below = _descendants(process.pid)
    assert len(below) >= 4, "two workers, their server, the shipper"
    process.send_signal(signal.SIGINT)
    until((tmp_path / "told").exists, process)
    assert process.poll() is None, "the jobs do not end by themselves"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT)
    until_gone(*below)
    assert process.returncode == 130


COUNTING = """
import time
from pathlib import Path
from trainyard.hooks import Hook
here = Path(__file__).parent
class Slow(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        with (here / "iterations").open("ab") as file:
            file.write(b".")
        time.sleep(0.01)

    def after_train(self, runner):
        if runner.members[0].work_dir.name == "3":
            (here / "waits").touch()
            while not (here / "go").exists():
                time.sleep(0.01)
"""


def test_killed_at_random_until_it_is_done(tmp_path: Path) -> None:
    """The whole process group dies at a random moment, again and again; each job ends with its undisturbed result."""
    (tmp_path / "slow.py").write_text(COUNTING)
    iterations, manifest = tmp_path / "iterations", tmp_path / "sweep/manifest.jsonl"
    moments = random.Random()

    def progress() -> Any:
        return tuple(path.stat().st_size if path.exists() else 0 for path in (iterations, manifest))

    for most in (0, 5, 15, 25):  # iterations, of all jobs together, until the next kill
        before, further = progress(), moments.randint(1, most) if most else 0
        (tmp_path / "waits").unlink(missing_ok=True)
        process = _start(tmp_path)
        if further == 0:
            until(lambda: progress()[1] > before[1], process)  # noqa: B023
        else:
            until(lambda: progress()[0] >= before[0] + further or (tmp_path / "waits").exists(), process)  # noqa: B023
        assert process.poll() is None, "the last job waits"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    (tmp_path / "go").touch()
    process = _start(tmp_path)
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, stderr
    command = [entry.replace("=sweep", "=undisturbed") for entry in _command(*GRID, "hydra.launcher.fuse=off")]
    undisturbed = forked.run(command, cwd=tmp_path, env=_environment())
    assert undisturbed.returncode == 0
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    done = Counter(record["num"] for record in records if record.get("state") == "done")
    assert done == {0: 1, 1: 1, 2: 1, 3: 1}, "each job was done exactly once"
    for num in range(4):
        assert points(tmp_path / f"sweep/{num}") == points(tmp_path / f"undisturbed/{num}")


def test_sweep_resume_repeats_the_command(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(COUNTING)
    process = _start(tmp_path)
    for line in process.stdout:
        if line.startswith("done"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (tmp_path / "go").touch()
    folder = (tmp_path / "sweep").rename(tmp_path / "lr=1, seed=(2) #ø'[x&")
    script = [sys.executable, "-m", "trainyard", "sweep", "resume"]
    resumed = forked.run([*script, str(folder)], env=_environment(tmp_path))
    assert resumed.returncode == 0, resumed.stderr
    assert "already done" in resumed.stdout
    assert {entry.state for entry in Manifest.open(folder).entries.values()} == {"done"}
    none = forked.run([*script, str(tmp_path)], env=_environment())
    assert none.returncode == 2
    assert "which has a multirun.yaml" in " ".join(none.stderr.split())
