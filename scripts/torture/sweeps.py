"""Sweeps whose processes are killed at drawn moments, continued until they are done."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import outcome
import process_tree
from trials import FaultError, Part, Trial

ROOT = Path(__file__).resolve().parents[2]
FIXED = ("tracker=none", "device=cpu", "hook.checkpoint.min_seconds=0", "hook.checkpoint.by=iter",
         "hook.checkpoint.interval=4", "hydra.launcher.max_jobs=2", "hydra.launcher.threads_per_job=1")  # fmt: skip
MODELS = (
    ("data=rings", "data.num_samples=300", "model.hidden=[8]", "loop.max_epochs=6"),
    (
        "data=rings",
        "data.num_samples=300",
        "model.hidden=[6,4]",
        "loop=iter",
        "loop.max_iters=40",
        "loop.val_interval=9",
    ),
    ("data=digits", "data.batch_size=128", "model=cnn", "model.channels=[4,4]", "loop.max_epochs=4"),
)
GRIDS = (
    ("optim.lr=1e-3,1e-2", "seed=0,1"),
    ("optim=sgd,adam", "seed=0,1,2"),
    ("optim.lr=3e-3", "seed=range(6)", "schedule=cosine"),
)
LENGTHS = ("optim.lr=1e-3,1e-2", "seed=0,1", "loop.max_epochs=2,5,3")
"""Jobs of several lengths: more than the lanes of the stacks, which those that wait join."""
STACKS = ("off", "off", "auto", "3")
TARGETS = ("worker", "agent", "head", "head", "group", "tree")
ROUNDING = 1e-3
"""Relative difference of numbers that trained in stacks of other widths, in float32, on a few epochs."""
LIMIT = 600
ATTEMPTS = 8

DECISIONS = "decisions"
"""Kind of the records of a manifest that say how jobs are stacked; without them jobs are compared to rounding."""


@dataclass(frozen=True)
class Kill:
    """Kill of one or several processes of a sweep.

    Attributes:
        target: a worker, the agent, the head (the command's process), the command's process group, or the whole tree.
        share: the share of what the undisturbed sweep writes that is written before.
        delay: seconds from there.
        signum: the signal.
        again: seconds after which it comes a second time; None for once.
    """

    target: str
    share: float
    delay: float
    signum: int
    again: float | None

    def __str__(self) -> str:
        twice = "" if self.again is None else f" and again after {self.again:.3f} s"
        return f"{signal.Signals(self.signum).name}@{self.target} at {self.share:.0%}+{self.delay:.3f} s{twice}"


def attempt(trial: Trial) -> None:
    """Run a drawn sweep, kill some of its processes up to three times, and continue it until it is done.

    Raises:
        FaultError: it does not get done, a job ends twice or with other numbers than in the sweep that was left
            alone, or a process survives.
    """
    random = trial.random
    model = random.choice(MODELS)
    grids = GRIDS if "loop=iter" in model else (*GRIDS, LENGTHS)
    overrides = [*model, *random.choice(grids), *FIXED, *trial.also]
    fuse, retries = random.choice(STACKS), random.choice((0, 2))
    kills = sorted((_drawn(random) for _ in range(random.randint(1, 3))), key=lambda kill: kill.share)
    trial.tell(*overrides, f"hydra.launcher.fuse={fuse}", f"hydra.launcher.retries={retries}", *kills)
    undisturbed = _undisturbed(trial.folder.parent, [*overrides, f"hydra.launcher.fuse={fuse}"])
    amount = process_tree.written(undisturbed)
    directory = trial.folder / "sweep"
    command = _command(directory, [*overrides, f"hydra.launcher.fuse={fuse}", f"hydra.launcher.retries={retries}"])
    for number in range(ATTEMPTS):
        kill = kills[number] if number < len(kills) else None
        _run_once(command, trial.folder, directory, kill, amount)
        if kill is None and _is_done(directory):
            break
        if (directory / "multirun.yaml").exists():
            command = [sys.executable, "-m", "trainyard", "sweep", "resume", str(directory)]
    else:
        raise FaultError(f"not done after {ATTEMPTS} starts:\n{_tail(trial.folder)}")
    decided = any(record["kind"] == DECISIONS for record in _records(directory))
    exact = fuse == "off" or decided
    if fuse != "off" and decided:
        undisturbed = _with_the_decisions_of(directory, [*overrides, f"hydra.launcher.fuse={fuse}"])
    _check(directory, undisturbed, exact=exact)


def _drawn(random: Random) -> Kill:
    target = random.choice(TARGETS)
    signums = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) if target in ("head", "group") else (signal.SIGKILL,)
    signum = random.choice(signums)
    again = random.uniform(0, 0.3) if signum != signal.SIGKILL and random.random() < 0.4 else None
    return Kill(target, random.random(), random.uniform(0, 0.1), signum, again)


def _undisturbed(folder: Path, overrides: Sequence[str]) -> Path:
    """Return the directory of a sweep that was left alone; the cases of a part share it."""
    key = hashlib.sha256("\n".join(overrides).encode()).hexdigest()
    directory = folder / f"undisturbed-{key[:16]}"
    if not directory.exists():
        _run_once(_command(directory, overrides), folder, directory, None, 0)
        if not _is_done(directory):
            raise FaultError(f"the undisturbed sweep is not done:\n{_tail(folder)}")
    return directory


def _command(directory: Path, overrides: Sequence[str]) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "-m", *overrides, f"hydra.sweep.dir='{directory}'"]


def _run_once(command: Sequence[str], folder: Path, directory: Path, kill: Kill | None, amount: int) -> None:
    """Start a command and wait for its end, after a kill if there is one.

    Raises:
        FaultError: it does not end, or processes of it are left.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(folder)])}
    with (folder / "output.txt").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        family = {process.pid}
        try:
            if kill is not None:
                family |= _kill(process, directory, kill, amount)
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise FaultError(f"the sweep did not end within {LIMIT} s:\n{_tail(folder)}") from None
        finally:
            if process.poll() is None:
                process_tree.send(process_tree.tree(process.pid), signal.SIGKILL)
                process.wait()
    _check_gone(family)


def _kill(process: subprocess.Popen[bytes], directory: Path, kill: Kill, amount: int) -> set[int]:
    """Wait for the moment and kill; return the processes that there were then."""
    while process_tree.written(directory) < kill.share * amount:
        if process.poll() is not None:
            return set()
        time.sleep(0.005)
    time.sleep(kill.delay)
    family = process_tree.tree(process.pid)
    targets = _targets(family, kill.target)
    process_tree.send(targets, kill.signum)
    if kill.again is not None:
        time.sleep(kill.again)
        process_tree.send(targets, kill.signum)
    return set(family)


def _targets(family: Sequence[int], target: str) -> list[int]:
    """Return the processes of a sweep that a kill is for; none where there is none such at the moment."""
    head = family[0]
    agents = [pid for pid in family[1:] if "agent_process" in process_tree.command(pid)]
    main_agent = agents[:1]  # the tree lists parents first; workers are forks with the same command line
    if target == "worker":
        return agents[-1:] if len(agents) > 1 else []
    if target == "group":
        return [pid for pid in family if _group(pid) == head]
    return {"agent": main_agent, "head": [head], "tree": list(family)}[target]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _check_gone(family: set[int]) -> None:
    """Check that no process of a command outlives it by more than some seconds."""
    until = time.monotonic() + 60
    while left := process_tree.alive(family):
        if time.monotonic() > until:
            told = ", ".join(f"{pid} ({process_tree.command(pid)[:80]})" for pid in left)
            process_tree.send(left, signal.SIGKILL)
            raise FaultError(f"processes of the sweep are left after its end: {told}")
        time.sleep(0.02)


def _records(directory: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a manifest."""
    file = directory / "manifest.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def _is_done(directory: Path) -> bool:
    states: dict[int, str] = {}
    for record in _records(directory):
        if record["kind"] == "job":
            states.setdefault(record["num"], "waiting")
        elif record["kind"] == "state":
            states[record["num"]] = record["state"]
    return bool(states) and set(states.values()) == {"done"}


def _with_the_decisions_of(directory: Path, overrides: Sequence[str]) -> Path:
    """Return the directory of a sweep that was left alone and followed the decisions that another one has recorded."""
    follower = directory.with_name("follower")
    follower.mkdir()
    kept = [json.dumps(record) for record in _records(directory) if record["kind"] != "state"]
    (follower / "manifest.jsonl").write_text("".join(f"{line}\n" for line in kept))
    _run_once(_command(follower, overrides), directory.parent, follower, None, 0)
    if not _is_done(follower):
        raise FaultError(f"the sweep that follows recorded decisions is not done:\n{_tail(directory.parent)}")
    return follower


def _check(directory: Path, undisturbed: Path, *, exact: bool) -> None:
    """Check a sweep that is done against one that was left alone.

    Raises:
        FaultError: they differ, in a bit or, if not `exact`, in a loss by more than rounding.
    """
    done = Counter(record["num"] for record in _records(directory) if record.get("state") == "done")
    jobs = {record["num"] for record in _records(undisturbed) if record["kind"] == "job"}
    if done != dict.fromkeys(jobs, 1):
        raise FaultError(f"jobs that were done, and how often: {dict(done)}; expected: {sorted(jobs)}, each once")
    lanes = [_lanes(each) for each in (directory, undisturbed)]
    for num in sorted(jobs):
        where = f"job {num} of the killed sweep against the undisturbed one"
        found, expected = (outcome.of(each / str(num)) for each in (directory, undisturbed))
        if exact and lanes[0].get(num) == lanes[1].get(num):
            outcome.check_equal(found, expected, where)
        else:
            losses = [{key: at for key, at in each["points"].items() if "loss" in key} for each in (found, expected)]
            outcome.check_equal(losses[0], losses[1], where, ROUNDING)
    results = [(each / "results.csv").exists() for each in (directory, undisturbed)]
    if not all(results):
        raise FaultError("a sweep that is done has no results.csv")


def _lanes(directory: Path) -> dict[int, list[tuple[int, int]]]:
    """Return the lanes and widths in which each job has trained, by what was recorded since its sweep first began."""
    found: dict[int, list[tuple[int, int]]] = {}
    records = _records(directory)
    first = next((index for index, record in enumerate(records) if record["kind"] == "began"), 0)
    if directory.name == "follower":  # what it follows comes first
        first = max(index for index, record in enumerate(records) if record["kind"] == "began")
    for task in [task for record in records[first:] if record["kind"] == DECISIONS for task in record["tasks"]]:
        for num, lane in zip(task["nums"], task.get("lanes", ()), strict=False):
            own = found.setdefault(num, [])
            if own[-1:] != [(lane, task["width"])]:
                own.append((lane, task["width"]))
    return found


def _tail(folder: Path) -> str:
    lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
    return "\n".join(lines[-25:])


PART = Part(
    "sweeps",
    "each job is completed once, and no process remains; the last checkpoint, the best weights and the journal of each"
    " job are bit-identical to those of an uninterrupted sweep (stacked jobs: with the same recorded decisions)",
    usual=2,
    attempt=attempt,
)
