"""Stacks of jobs in real processes: an application of a few lines that can train its jobs one by one or together."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Forked
from waiting import LIMIT, until

from trainyard.sweep.decisions import PROMISE
from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).parents[2]

# Gradient descent on x² from 10, a step of all members at a time; `how` says what goes wrong in the stack.
QUAD = """
import json, logging, os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from trainyard.errors import StackDivided, Unfusable
from trainyard.sweep.sweepable import SweepableTask

log = logging.getLogger(__name__)
ALLOWED, FIXED_WITH, NOT_COMPARED, PRELOAD = ("lr", "seed"), {}, ("resume",), ()
here = Path.cwd()

@dataclass
class Fit:
    width: int
    reason: str | None = None
    note: str = ""
    seconds: float | None = None

@dataclass
class Result:
    state: str
    value: float | None = None
    error: str | None = None

class Member:
    def __init__(self, config, directory):
        self.config, self.work_dir, self.file = config, directory, directory / "state.json"
        there = config.resume and self.file.exists()
        self.step, self.x = json.loads(self.file.read_text()) if there else (0, 10.0)

    def train(self):
        self.x -= self.config.lr * 2 * self.x
        self.step += 1
        with (self.work_dir / "steps.txt").open("a") as file:
            print(self.step, file=file)
        self.file.write_text(json.dumps([self.step, self.x]))

def widest(device):
    return 64

def probe(configs, of):
    how = configs[0].how
    if how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "unfit":
        return Fit(1, "its model draws random numbers")
    if how == "slow":
        return Fit(1, "one by one is faster", "0.5 times")
    return Fit(len(configs), None, f"{len(configs)} tried")

def train_stack(configs, positions):
    assert len(configs) == len(positions)
    how = configs[0].how
    if how == "unfit after all":
        raise Unfusable("the batches differ in size")
    members = [Member(config, Path(config.hydra.runtime.output_dir)) for config in configs]
    print("a stack of", len(members), flush=True)
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    while True:
        going = [m for m in members if m.step < m.config.steps and abs(m.x) < 1e6]
        if ended:
            return [Result("done" if m not in going else "interrupted", m.x) for m in members]
        if not going:
            break
        log.info("step %d", going[0].step)
        for member in going:
            member.train()
            log.info("x is %.3f", member.x, extra={"member": member})
        if how == "divides" and len(configs) == 3 and going[0].step == 2:
            raise StackDivided("no room for 3", [[0, 2], [1]])
        if how == "raises" and going[0].step == 2:
            raise ArithmeticError("something in all of them")
        if how == "waits" and going[0].step == 2:
            (here / f"pid{configs[0].hydra.job.num}").write_text(str(os.getpid()))
            while not (here / "go").exists() and not ended:
                time.sleep(0.01)
    return [
        Result("done", m.x) if abs(m.x) < 1e6 else Result("failed", error="x is too large") for m in members
    ]

class Quad(SweepableTask):
    resumes = True
    fuse = sys.modules[__name__]

    def __call__(self, config):
        member = Member(config, Path(HydraConfig.get().runtime.output_dir))
        while member.step < config.steps:
            if abs(member.x) >= 1e6:
                raise ArithmeticError("x is too large")
            member.train()
        return member.x
"""
APP = """
import os
import hydra
import quad

hydra.main(version_base="1.3", config_path=os.getcwd(), config_name="conf")(quad.Quad())()
"""
CONF = """
lr: 0.1
seed: 0
steps: 5
how: fine
resume: false
objective: x
direction: minimize
defaults: [_self_, {override hydra/launcher: local}]
"""
LINEAR = 10 * 0.8**5


@pytest.fixture
def command(tmp_path: Path) -> Any:
    (tmp_path / "quad.py").write_text(QUAD)
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "conf.yaml").write_text(CONF)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    env = clean | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", tmp_path))), "COLUMNS": "150"}

    def start(*arguments: Any) -> Any:
        return Forked(
            [sys.executable, "app.py", "-m", "hydra.sweep.dir=s", *arguments], cwd=tmp_path, env=env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture
def sweep(command: Any) -> Any:
    def run(*arguments: Any) -> Any:
        process = command(*arguments)
        out, err = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess((), process.returncode, out, err)

    return run


def _entries(folder: Any) -> Any:
    return Manifest.open(folder / "s").entries


def _states(folder: Any) -> Any:
    return {num: entry.state for num, entry in _entries(folder).items()}


def _decisions(folder: Any) -> Any:
    """The records of decisions, in order: of each, the jobs, threads and reasons."""
    records = [json.loads(line) for line in (folder / "s/manifest.jsonl").read_text().splitlines()]
    return [
        [(task["nums"], task["threads"], task["note"]) for task in record["tasks"]]
        for record in records
        if record["kind"] == "decisions"
    ]


def _steps(folder: Any, num: Any) -> Any:
    return [int(line) for line in (folder / f"s/{num}/steps.txt").read_text().split()]


def _wait_for(*files: Any) -> Any:
    until(lambda: all(file.exists() and file.read_text() for file in files))
    return [file.read_text() for file in files]


ONE = "hydra.launcher.max_jobs=1"


def test_a_stack_leaves_what_its_jobs_would_leave_alone(sweep: Any, tmp_path: Path) -> None:
    points = ("lr=0.1,0.2", "seed=0,1")
    alone = sweep(*points, "hydra.launcher.fuse=off")
    assert alone.returncode == 0, alone.stderr
    assert "a stack of" not in alone.stdout
    (tmp_path / "s").rename(tmp_path / "alone")
    result = sweep(*points, ONE)
    assert result.returncode == 0, result.stderr
    assert "  #0-#3  a stack of 4 on one slot (4 tried)\n    #0    lr=0.1 seed=0\n" in result.stdout
    assert "started  #0-#3 a stack of 4" in result.stdout
    assert result.stdout.count("done     ") == 4
    assert f"done     #3 lr=0.2 seed=1  {10 * 0.6**5:.4f}" in result.stdout
    for num in range(4):
        ours, theirs = (tmp_path / folder / str(num) for folder in ("s", "alone"))
        assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()} - {"output.log"}
        assert (ours / "state.json").read_text() == (theirs / "state.json").read_text()
        for name in ("config", "overrides", "hydra"):
            mine, its = (yaml.safe_load((each / f".hydra/{name}.yaml").read_text()) for each in (ours, theirs))
            if name == "hydra":
                for each in (mine, its):
                    del each["hydra"]["launcher"], each["hydra"]["runtime"]["output_dir"], each["hydra"]["overrides"]
            assert mine == its
        lines = (ours / "quad.log").read_text().splitlines()
        assert sum("x is" in line for line in lines) == 5
        assert sum("step" in line for line in lines) == 5
    assert (tmp_path / "s/stacks/0-3.log").read_text().startswith("a stack of 4")
    assert "x is" not in (tmp_path / "s/stacks/0-3.log").read_text()
    assert all(entry.width == 4 and entry.objective is not None for entry in _entries(tmp_path).values())

    again = sweep(*points)
    assert "4 jobs, 4 already done; 0 to run" in again.stdout
    assert "a stack of" not in again.stdout


def test_the_plan_says_who_is_alone_and_why(sweep: Any, tmp_path: Path) -> None:
    result = sweep("lr=0.1,0.2", "steps=5,6,5", "hydra.launcher.dry_run=true", ONE)
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "#0, #2, #3, #5  a stack of 4 on one slot (4 tried)" in lines
    assert "#1, #4  a stack of 2 on one slot (2 tried)" in lines
    result = sweep("lr=0.1", "steps=5,6", "hydra.launcher.dry_run=true")
    assert "#1    steps=6  (the only job with steps=6)" in result.stdout
    result = sweep("lr=0.1,0.2", "hydra.launcher.dry_run=true", "hydra.job.chdir=true")
    assert "  #0-#1  one by one: hydra.job.chdir=true\n    #0    lr=0.1\n" in result.stdout
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["multirun.yaml"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("unfit", "its model draws random numbers"),
        ("slow", "one by one is faster"),
        ("crash", "the probe ended with: its process was killed by SIGKILL before it returned a result"),
    ],
)
def test_what_cannot_be_fused_runs_alone(sweep: Any, tmp_path: Path, how: str, reason: str) -> None:
    result = sweep("lr=0.1,0.2", f"how={how}")
    assert result.returncode == 0, result.stderr
    assert f"  #0-#1  one by one: {reason}\n    #0    lr=0.1\n" in result.stdout
    assert set(_states(tmp_path).values()) == {"done"}
    assert (tmp_path / "s/0/output.log").exists()
    forced = sweep("lr=0.1,0.2", f"how={how}", "hydra.launcher.fuse=2", "hydra.sweep.dir=forced")
    if how == "slow":
        assert "#0-#1  a stack of 2 on one slot (0.5 times)" in forced.stdout
        return
    assert f"hydra.launcher.fuse=2: #0-#1 cannot be stacked: {reason}." in forced.stderr
    assert not (tmp_path / "forced/manifest.jsonl").exists()


def test_a_width_is_kept_to(sweep: Any, tmp_path: Path) -> None:
    result = sweep("seed=0,1,2,3,4,5,6", "hydra.launcher.fuse=3")
    assert result.returncode == 0, result.stderr
    assert "#0-#2  a stack of 3" in result.stdout
    assert "#3-#5  a stack of 3" in result.stdout
    assert "#6    seed=6  (left over from stacks of 3)" in result.stdout
    wrong = sweep("seed=0,1", "hydra.launcher.fuse=0", "hydra.sweep.dir=wrong")
    assert "hydra.launcher.fuse: 0 is invalid" in wrong.stderr


@pytest.mark.parametrize("how", ["unfit after all", "raises"])
def test_a_stack_that_cannot_go_on_runs_one_by_one(sweep: Any, tmp_path: Path, how: str) -> None:
    result = sweep("seed=0,1,2", f"how='{how}'", ONE)
    assert result.returncode == 0, result.stderr
    reason = "the batches differ in size" if how != "raises" else "ArithmeticError: something in all of them"
    assert f"split    #0-#2 into single jobs: {reason}" in result.stdout
    assert ("quad.py" in result.stdout) == (how == "raises"), "the traceback"
    assert set(_states(tmp_path).values()) == {"done"}
    for num in range(3):
        assert _steps(tmp_path, num) == [1, 2, 3, 4, 5], "it went on where the stack had ended"
    assert _decisions(tmp_path) == [[([0, 1, 2], 1, "3 tried")], [([num], 1, reason) for num in range(3)]]


def test_a_stack_that_is_divided_goes_on_in_groups(sweep: Any, tmp_path: Path) -> None:
    result = sweep("seed=0,1,2", "how=divides", ONE)
    assert result.returncode == 0, result.stderr
    assert "divided  #0-#2 into 2 groups (#0, #2; #1): no room for 3" in result.stdout
    assert _decisions(tmp_path) == [
        [([0, 1, 2], 1, "3 tried")],
        [([0, 2], 1, "no room for 3"), ([1], 1, "no room for 3")],
    ]
    for num in range(3):
        assert _steps(tmp_path, num) == [1, 2, 3, 4, 5], "they went on where the stack had ended"


def test_a_member_that_fails_is_a_failed_job(sweep: Any, tmp_path: Path) -> None:
    own = "hydra.sweep.subdir=${now:%S%f}/${hydra:job.num}"
    result = sweep("lr=0.1,9000,0.2", ONE, own)
    assert result.returncode != 0
    assert "FAILED  #1 lr=9000: x is too large" in result.stdout
    (log,) = tmp_path.glob("s/*/1/quad.log")
    assert f"         log: {log}" in result.stdout
    assert _states(tmp_path) == {0: "done", 1: "failed", 2: "done"}
    again = sweep("lr=0.1,9000,0.2", ONE, own, "hydra.launcher.retries=1")
    assert list(tmp_path.glob("s/*/1/quad.log")) == [log], "it keeps its directory, which depends on the time"
    assert "3 jobs, 2 already done; 1 to run" in again.stdout
    assert "retried  #1 lr=9000: ArithmeticError: x is too large" in again.stdout


def test_a_member_that_fails_is_tried_again_by_itself(sweep: Any, tmp_path: Path) -> None:
    result = sweep("lr=0.1,9000,0.2", ONE, "hydra.launcher.retries=1")
    assert "retried  #1 lr=9000: x is too large" in result.stdout
    assert "FAILED  #1 lr=9000: ArithmeticError: x is too large" in result.stdout, "and there is no third attempt"
    assert _states(tmp_path) == {0: "done", 1: "failed", 2: "done"}
    assert _decisions(tmp_path)[1] == [([1], 1, "retried after it failed in a stack")]


def test_a_failed_member_stops_the_others_where_that_is_asked_for(sweep: Any, tmp_path: Path) -> None:
    result = sweep("lr=0.1,9000", "steps=5,6,7", ONE, "hydra.launcher.fail_fast=true")
    assert result.returncode != 0
    states = _states(tmp_path)
    assert (states[0], states[3]) == ("done", "failed")
    assert Counter(states.values())["waiting"] == 4


def test_a_killed_stack_goes_on_as_a_stack(command: Any, tmp_path: Path) -> None:
    process = command("lr=0.1,0.1,0.2", "how=waits", ONE, "hydra.launcher.retries=1")
    (pid,) = _wait_for(tmp_path / "pid0")
    (tmp_path / "pid0").unlink()
    (tmp_path / "go").touch()
    os.kill(int(pid), signal.SIGKILL)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert "retried  #0-#2: its process was killed by SIGKILL" in out
    for num in range(3):
        assert _steps(tmp_path, num) == [1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "s/0/state.json").read_text())[1] == pytest.approx(LINEAR)
    records = [json.loads(line) for line in (tmp_path / "s/manifest.jsonl").read_text().splitlines()]
    attempts = Counter(record["attempt"] for record in records if record.get("state") == "running")
    assert attempts == {1: 3, 2: 3}


def test_a_killed_stack_without_another_attempt_has_failed(command: Any, sweep: Any, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    threads = f"hydra.launcher.threads_per_job={min(2, len(cores))}"
    process = command("lr=0.1,0.2", "how=waits", ONE, threads)
    (pid,) = _wait_for(tmp_path / "pid0")
    os.kill(int(pid), signal.SIGKILL)
    out, _ = process.communicate(timeout=LIMIT)
    assert out.count("LOST  #") == 2
    assert _states(tmp_path) == {0: "lost", 1: "lost"}

    (tmp_path / "go").touch()
    os.sched_setaffinity(0, cores[:1])
    try:
        continued = sweep("lr=0.1,0.2", "how=waits", ONE, threads)
    finally:
        os.sched_setaffinity(0, cores)
    assert continued.returncode == 0, continued.stderr
    line = f"#0-#1 cannot train as recorded: the number of threads was 2, but is 1 here ({PROMISE}).\n"
    assert (line in continued.stdout) == (len(cores) > 1)
    assert _decisions(tmp_path)[-1] == [([0, 1], 1, "2 tried")]


def test_interrupted_stacks_go_on_as_recorded(command: Any, sweep: Any, tmp_path: Path) -> None:
    process = command("lr=0.1,0.1,0.2,0.2", "how=waits", "hydra.launcher.max_jobs=2")
    _wait_for(tmp_path / "pid0")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert f"run `trainyard sweep resume {tmp_path / 's'}`." in " ".join(err.split())
    states = Counter(_states(tmp_path).values())
    assert states["interrupted"] >= 2
    assert states["done"] == 0
    (tmp_path / "go").touch()
    result = sweep("lr=0.1,0.1,0.2,0.2", "how=waits", ONE, "hydra.launcher.fuse=off")
    assert result.returncode == 0, result.stderr
    for nums in ("#0-#1", "#2-#3"):
        assert f"  {nums}  a stack of 2 on one slot (4 tried, as recorded)" in result.stdout
    assert len(_decisions(tmp_path)) == 1, "nothing was decided anew"
    assert set(_states(tmp_path).values()) == {"done"}
    for num in range(4):
        assert _steps(tmp_path, num) == [1, 2, 3, 4, 5]


def test_a_timeout_is_the_stacks(sweep: Any, tmp_path: Path) -> None:
    result = sweep("lr=0.1,0.2", "how=waits", ONE, "hydra.launcher.timeout=2")
    assert result.returncode != 0
    assert "OUT OF TIME  #1 lr=0.2: took longer than 2 s" in result.stdout
    assert _states(tmp_path) == {0: "timeout", 1: "timeout"}


CALLED = """
import os
from hydra.experimental.callback import Callback

class Called(Callback):
    def _write(self, what, config):
        with open("called.txt", "a") as file:
            print(what, config.hydra.job.num, config.lr, file=file)

    def on_job_start(self, config, *, task_function, **kwargs):
        self._write("start", config)

    def on_job_end(self, config, job_return, **kwargs):
        self._write(f"end {job_return.status.name} {job_return._return_value}", config)
"""


def test_callbacks_and_environment(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "called.py").write_text(CALLED)
    result = sweep(
        "lr=0.1,9000", ONE, "+hydra.callbacks.c._target_=called.Called", "hydra.output_subdir=null",
        "+hydra.job.env_set.QUAD=1",
    )  # fmt: skip
    assert "a stack of 2" in result.stdout
    lines = (tmp_path / "called.txt").read_text().splitlines()
    assert lines[:2] == ["start 0 0.1", "start 1 9000"]
    assert lines[2].startswith("end COMPLETED 3.27")
    assert lines[3] == "end FAILED x is too large 1 9000"
    assert not (tmp_path / "s/0/.hydra").exists()
