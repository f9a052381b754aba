"""What a sweep promises beyond its plain run: batches, retries, patterns of directories, other applications."""

import csv
import errno
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from omegaconf import OmegaConf
from waiting import LIMIT

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job
from trainyard.sweep.settings import SweepSettings
from trainyard.sweep.steering import is_run
from trainyard.sweep.varying import varying
from trainyard.track import read

ROOT = Path(__file__).parents[2]
SMALL = ["data=rings", "data.num_samples=200", "loop.max_epochs=2", "model.hidden=[8]", "tracker=none"]


@pytest.fixture
def command(tmp_path: Path) -> Any:
    def run(script: Any, *arguments: Any) -> Any:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
        path = os.pathsep.join(map(str, (ROOT / "src", tmp_path)))
        return forked.run(
            [sys.executable, str(script), "-m", *arguments], cwd=tmp_path,
            timeout=LIMIT, env=clean | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "150"},
        )  # fmt: skip

    return run


@pytest.fixture
def sweep(command: Any) -> Any:
    return lambda *arguments: command(ROOT / "train.py", *SMALL, *arguments)


def _info(folder: Any) -> Any:
    return json.loads((folder / "run.json").read_text())


def test_batches_make_one_sweep(sweep: Any, tmp_path: Path) -> None:
    result = sweep("seed=0,1", "optim.lr=0.01", "hydra.sweeper.max_batch_size=1", "hydra.sweep.dir=s")
    assert result.returncode == 0, result.stderr
    assert [_info(tmp_path / f"s/{num}")["name"] for num in (0, 1)] == ["seed=0", "seed=1"]
    assert _info(tmp_path / "s/1")["params"]["seed"] == "1"
    assert "optim.lr" not in _info(tmp_path / "s/1")["params"]
    with (tmp_path / "s/results.csv").open() as file:
        assert {(row["job"], row["seed"]) for row in csv.DictReader(file)} == {("0", "0"), ("1", "1")}
    tags = [record["tags"] for record, _ in read(tmp_path / "s/metrics.jsonl") if record["kind"] == "tags"]
    assert tags == [{"jobs": "1"}, {"jobs": "2"}]


FAILS_ONCE = """
from pathlib import Path
from trainyard.hooks import Hook
class FailOnce(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        marker = Path("failed")
        if runner.seed == 1 and runner.iter >= 2 and not marker.exists():
            marker.touch()
            raise ArithmeticError("just once")
"""


def test_another_attempt_goes_on_in_the_same_directory(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS_ONCE)
    result = sweep("seed=0,1", "+hook.f._target_=fails.FailOnce", "hydra.launcher.retries=1", "hydra.sweep.dir=s")
    assert result.returncode == 0, result.stderr
    assert "retried  #1 seed=1: ArithmeticError: just once" in result.stdout
    assert "fails.py" in result.stdout, "the traceback of the attempt that failed"
    steps = [record["step"] for record, _ in read(tmp_path / "s/1/metrics.jsonl") if "val/loss" in str(record)]
    assert steps == sorted(set(steps)), "no point twice"


FAILS = """
from trainyard.hooks import Hook
class Fail(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        raise ArithmeticError("always")
"""


def test_jobs_that_never_began_are_not_called_interrupted(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    result = sweep(
        "seed=0,1,2", "+hook.f._target_=fails.Fail", "hydra.launcher.max_jobs=1", "hydra.launcher.fail_fast=true",
        "hydra.sweep.dir=s",
    )  # fmt: skip
    assert result.returncode == 1
    states = {num: entry.state for num, entry in Manifest.open(tmp_path / "s").entries.items()}
    assert states == {0: "failed", 1: "waiting", 2: "waiting"}
    assert "3 of 3 jobs did not finish: #0, #1, #2." in result.stderr


def test_directories_and_values_may_depend_on_the_job(sweep: Any, tmp_path: Path) -> None:
    result = sweep(
        "seed=0,1", "optim.lr=0.1,0.2", "hydra.sweep.dir=m/${optim.lr}", "hydra.sweep.subdir=s${hydra:job.num}/${seed}",
        "name=job${hydra:job.num}", "hydra.job.chdir=true",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for num, (seed, rate) in enumerate([(0, 0.1), (0, 0.2), (1, 0.1), (1, 0.2)]):
        folder = tmp_path / f"m/{rate}/s{num}/{seed}"
        assert _info(folder)["name"] == f"job{num}"
        assert (folder / "output.log").exists()
    assert "Sweep: " + str(tmp_path / "m/0.001") in result.stdout


OTHER = """
import pickle
import hydra, numpy

class Thing:
    pass

@hydra.main(version_base="1.3", config_path=".", config_name="conf")
def main(cfg):
    pickle.loads(pickle.dumps(Thing()))  # a class of this script, by its name
    return numpy.float32(cfg.a)

main()
"""


def test_another_application_may_use_our_names(command: Any, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(OTHER)
    (tmp_path / "conf.yaml").write_text(
        "a: 1\nobjective: {x: '${a}'}\ndirection: north\ntracker: {_target_: no.such.Thing}\n"
        "defaults: [_self_, {override hydra/launcher: local}]\n"
    )
    result = command(tmp_path / "app.py", "a=3,1", "hydra.sweep.dir=s")
    assert result.returncode == 0, result.stderr
    with (tmp_path / "s/results.csv").open() as file:
        assert [(row["rank"], row["a"], row["objective"]) for row in csv.DictReader(file)] == [
            ("1", "1", "1.0"), ("2", "3", "3.0"),
        ]  # fmt: skip


DEAF = """
import signal, time
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)

main()
"""


def test_a_hung_job_that_hears_no_signal_is_killed_after_its_grace(command: Any, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(DEAF)
    result = command(
        tmp_path / "app.py", "+a=1", "hydra/launcher=local", "hydra.sweep.dir=s", "hydra.launcher.timeout=0.5",
        "hydra.launcher.grace=0.5",
    )  # fmt: skip
    assert "OUT OF TIME  #0: took longer than 0.5 s" in result.stdout, result.stderr
    assert "Report: " in result.stdout, "also from a sweeper that ends with the error"
    assert "Exception ignored" not in result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"foo": 1}, "hydra.launcher: 'foo' is invalid"),
        ({"retrys": 1}, "Did you mean 'retries'?"),
        ({"timeout": "abc"}, "hydra.launcher.timeout: 'abc' is invalid. Expected a number of seconds, or null."),
        ({"fail_fast": 3}, "hydra.launcher.fail_fast: 3 is invalid. Expected true or false."),
        ({"retries": True}, "hydra.launcher.retries: True is invalid. Expected an integer."),
        ({"jobs_per_gpu": "two"}, "hydra.launcher.jobs_per_gpu: 'two' is invalid. Expected an integer, or auto."),
        ({"threads_per_job": None}, "Expected an integer, or auto."),
        ({"grace": None}, "hydra.launcher.grace: None is invalid. Expected a number of seconds."),
        ({"fuse": "of"}, "hydra.launcher.fuse: 'of' is invalid. Expected an integer, auto or off."),
        ({"fuse": True}, "hydra.launcher.fuse: True is invalid"),
        ({"jobs_per_gpu": "off"}, "hydra.launcher.jobs_per_gpu: 'off' is invalid"),
    ],
)
def test_settings_of_another_kind(values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SweepSettings.from_config(values)
    assert message in str(caught.value)


def test_settings() -> None:
    given = {
        "jobs_per_gpu": "auto",
        "threads_per_job": 2,
        "max_jobs": None,
        "timeout": 3,
        "fail_fast": True,
        "grace": 0,
    }
    assert SweepSettings.from_config(given) == SweepSettings(threads_per_job=2, timeout=3, fail_fast=True, grace=0)
    assert SweepSettings.from_config({"fuse": False}).fuse == "off", "as YAML reads it"
    assert SweepSettings.from_config({"fuse": 8}).fuse == 8


def test_what_varies_is_what_the_sweeper_chose() -> None:
    def jobs(*points: Any) -> Any:
        return [Job(num, point, OmegaConf.create(), Path()) for num, point in enumerate(points)]

    command = ["seed=0,1", "optim.lr=1e-3", "+extra=choice(7,8)", "~hook.ema"]
    fixed = ("optim.lr=0.001", "~hook.ema")
    assert varying(jobs(("seed=0", "+extra=7", *fixed)), command) == ["seed", "extra"], "of a single job as well"
    assert varying(jobs(("seed=0", *fixed), ("seed=0", "model=cnn", *fixed)), command) == ["seed", "model"]
    twice = jobs(("a=1", "a=1"), ("a=1", "a=2"))
    assert varying(twice, ["a=1", "a=1,2"]) == ["a"]


@pytest.mark.parametrize("network_disk", [False, True])
def test_a_sweep_runs_in_one_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, network_disk: bool
) -> None:
    lock = fcntl.flock

    def of_nfs(fd: int, operation: int) -> None:
        needed = os.O_WRONLY if operation & fcntl.LOCK_EX else os.O_RDONLY
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE not in (needed, os.O_RDWR):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(fd, operation)

    if network_disk:
        monkeypatch.setattr(fcntl, "flock", of_nfs)
    manifest = Manifest.open(tmp_path)
    with manifest.held():
        with (
            pytest.raises(TrainyardError, match="another process is running this sweep"),
            Manifest.open(tmp_path).held(),
        ):
            pass
        assert is_run(tmp_path)
        manifest.define(0, ["a=1"])
    with manifest.held():
        assert Manifest.open(tmp_path).entries[0].overrides == ["a=1"]


def test_objectives_of_numpy_are_numbers(tmp_path: Path) -> None:
    manifest = Manifest.open(tmp_path)
    manifest.define(0, [])
    manifest.note(0, "done", objective=np.float32(0.5))
    assert Manifest.open(tmp_path).entries[0].objective == 0.5
    manifest.note(0, "done", objective=Path("x"))
    assert manifest.entries[0].objective == "x"
