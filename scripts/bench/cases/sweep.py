"""Complete sweep: Trainyard compared with a hand-written script that Hydra's joblib launcher runs.

Both sides run the same jobs (learning rates x seeds) on all cores, with one thread per job: an MLP 64-64-64-10 on the
digits data, 20 epochs, Adam. Each run is logged to MLflow (SQLite) with its params, its metrics of every epoch, and its
last checkpoint, except in the row "untracked". "Joblib, by hand" is `sweep_by_hand.py`. "One by one" is
`hydra.launcher.fuse=off`.

Jobs of a grid over Trainyard's configs (2 models, 2 optimizers, learning rates, seeds) are composed by Trainyard, and
by Hydra's `load_sweep_config`, which composes only 24 of them. An empty job runs in Trainyard's executor, or in a new
interpreter that imports torch.

**Result:** a sweep of short jobs saves most of its time because jobs do not import torch again, and train in stacks.
"""

from __future__ import annotations

import itertools
import logging
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from environment import ROOT
from measure import Comparison, Session, Side, Table, Turn, compared, take_turns, take_turns_here

from trainyard.config.hydra_versions import VERSION_BASE

EXPERIMENT = "bench"
EPOCHS = 20
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2)
BY_HAND = Path(__file__).resolve().parents[1] / "sweep_by_hand.py"

# Work that train.py does by default and the other side does not: a checkpoint after every epoch, the best one kept,
# loaded for the test and logged as an MLflow model, and two points of the learning curve within an epoch.
SAME_WORK = (
    f"hook.checkpoint.interval={EPOCHS}",
    "hook.checkpoint.save_best=false",
    "hook.logger.interval=20",
)
TRACKED_WORK = ("tracker.log_model=false", "tracker.log_checkpoints=[last]")

SMALL, LARGE = 32, 256
GOALS = {SMALL: 0.22, LARGE: 0.12}  # of the time of joblib


@dataclass
class Sweep:
    """Sweep of one side.

    Attributes:
        fuse: of Trainyard's launcher; None is the script written by hand.
        tracked: whether the runs are logged to MLflow.
        cpu: the CPU seconds of its processes, one number for each time that it ran.
    """

    points: int
    fuse: str | None
    tracked: bool = True
    cpu: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """Run the sweep in a folder of its own, and return the seconds from the command's start to its end."""
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory(prefix="trainyard-sweep-") as folder:
            uri = f"sqlite:///{folder}/mlflow.db"
            client = MlflowClient(uri)
            experiment = client.create_experiment(EXPERIMENT, artifact_location=f"{folder}/artifacts")
            # The libraries' files are in the system's cache, whichever side begins.
            warm = "import torch, mlflow.pytorch, sklearn.datasets, hydra, pandas"
            subprocess.run([sys.executable, "-c", warm], check=True)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            begin = perf_counter()
            done = subprocess.run(self.command(uri), cwd=folder, capture_output=True, text=True, check=False)
            wall = perf_counter() - begin
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode:
                raise RuntimeError(f"status {done.returncode}: {' '.join(done.stderr.split())[-200:]}")
            whole = finished(client, experiment) if self.tracked else checkpoints(Path(folder, "sweep"))
            if whole != self.points:
                raise RuntimeError(f"{whole} of {self.points} runs are whole")
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return wall

    def command(self, uri: str) -> list[str]:
        rates, seeds = ",".join(map(str, RATES)), ",".join(map(str, range(self.points // len(RATES))))
        if self.fuse is None:
            tracking = [f"tracking_uri={uri}", f"experiment_name={EXPERIMENT}"]
            work = [f"epochs={EPOCHS}", "batch_size=64", "hidden=[64,64]"]
            return [
                sys.executable,
                str(BY_HAND),
                "-m",
                *work,
                *tracking,
                f"lr={rates}",
                f"seed={seeds}",
                "hydra.sweep.dir=sweep",
            ]
        tracking = [f"tracker.uri={uri}", f"tracker.experiment={EXPERIMENT}", *TRACKED_WORK]
        if not self.tracked:
            tracking = ["tracker=none"]
        work = ["model=mlp", "model.hidden=[64,64]", "optim=adam", f"loop.max_epochs={EPOCHS}", "data.batch_size=64"]
        sweep = [f"optim.lr={rates}", f"seed={seeds}", "hydra.sweep.dir=sweep", f"hydra.launcher.fuse={self.fuse}"]
        return [sys.executable, str(ROOT / "train.py"), "-m", *work, *tracking, *SAME_WORK, *sweep]


def finished(client: object, experiment: str) -> int:
    """Return how many runs are FINISHED in MLflow, with params, metrics of every epoch and a checkpoint."""
    from mlflow import MlflowClient

    assert isinstance(client, MlflowClient)
    found = client.search_runs([experiment], "attributes.status = 'FINISHED'", max_results=10_000)
    return sum(
        run.data.tags.get("kind") != "sweep"
        and len(client.get_metric_history(run.info.run_id, "val/loss")) == EPOCHS
        and len(client.get_metric_history(run.info.run_id, "train/loss")) >= EPOCHS
        and bool(client.list_artifacts(run.info.run_id, "checkpoints"))
        and bool(run.data.params)
        for run in found
    )


def checkpoints(directory: Path) -> int:
    """Return how many jobs of a sweep's directory have a checkpoint of the last epoch."""
    return len(list(directory.glob(f"*/checkpoints/epoch_{EPOCHS:04d}.pt")))


def tables(session: Session) -> Iterator[Table]:
    for points in (8,) if session.quick else (SMALL, LARGE):
        yield from sweeps(session.fewer(), points)

    count = session.size(500, 50)
    composers = {"trainyard": partial(compose, count, True), "Hydra": partial(compose, min(count, 24), False)}
    values, failed = take_turns(session, composers, turns=1)
    yield Table(f"Composing {count} jobs", "ms per job", values, failed, compared(composers, "trainyard"))

    tasks: dict[str, Side] = {"trainyard": partial(executor, session.size(100, 20)), "fresh interpreter": interpreter}
    values, failed = take_turns(session, tasks, turns=1)
    yield Table("An empty job", "ms per job, all cores busy", values, failed, compared(tasks, "trainyard"))


def sweeps(session: Session, points: int) -> Iterator[Table]:
    """Yield the time of a complete sweep, and its CPU time; one by one only for the smaller one."""
    ours, untracked, single, by_hand = "trainyard", "trainyard, untracked", "trainyard, one by one", "joblib, by hand"
    sides = {ours: Sweep(points, "auto"), untracked: Sweep(points, "auto", tracked=False), by_hand: Sweep(points, None)}
    comparisons = [Comparison(ours, by_hand, GOALS.get(points)), Comparison(ours, untracked, 1.1)]
    if points != LARGE:
        sides[single] = Sweep(points, "off")
        comparisons.append(Comparison(single, by_hand, 0.45))
    values, failed = take_turns_here(session, sides, warm=False)
    yield Table(f"A sweep of {points} jobs", "s", values, failed, comparisons)
    cpu = {name: sides[name].cpu for name in values}
    without_goals = [replace(comparison, reach=None) for comparison in comparisons]
    yield Table(f"A sweep of {points} jobs: CPU time of all processes", "s", cpu, failed, without_goals)


def grid(size: int) -> list[list[str]]:
    """Return the overrides of `size` jobs with four combinations of group choices; neighbours differ in them."""
    groups = itertools.product(("mlp", "cnn"), ("adam", "sgd"))
    values = itertools.product(range(-(-size // 20)), ("1e-4", "1e-3", "1e-2", "0.1", "1.0"))
    points = itertools.product(values, groups)
    return [
        [f"model={model}", f"optim={optim}", f"optim.lr={lr}", f"seed={seed}"]
        for (seed, lr), (model, optim) in itertools.islice(points, size)
    ]


@contextmanager
def compose(count: int, ours: bool) -> Iterator[Turn]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from trainyard.sweep.compose.composer import Composer

    points = grid(count)
    with initialize_config_dir(str(ROOT / "conf"), job_name="train", **VERSION_BASE):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        master = hydra.compose_config("train", [], RunMode.MULTIRUN, with_log_configuration=False)

        def turn() -> float:
            begin = perf_counter()
            if ours:
                Composer(loader, master).compose_all(points)
            else:
                for point in points:
                    loader.load_sweep_config(master, point)
            return (perf_counter() - begin) / count * 1e3

        yield turn


def nothing(argument: object) -> None:
    """Do nothing."""


@contextmanager
def executor(count: int) -> Iterator[Turn]:
    from trainyard.sweep.executor import LocalExecutor, find_slots
    from trainyard.sweep.executor.task import Task
    from trainyard.sweep.run_tasks import run_tasks

    with LocalExecutor(find_slots(), preload=("torch", __name__)) as local:  # as a sweep does with its application

        def turn() -> float:
            begin = perf_counter()
            outcomes = run_tasks(local, [Task(number, nothing) for number in range(count)]).outcomes
            seconds = perf_counter() - begin
            assert all(outcome.state == "done" for outcome in outcomes), "a job failed"
            return seconds / count * 1e3

        yield turn


@contextmanager
def interpreter() -> Iterator[Turn]:
    cores = len(os.sched_getaffinity(0))

    def turn() -> float:
        begin = perf_counter()
        for process in [subprocess.Popen([sys.executable, "-c", "import torch"]) for _ in range(cores)]:
            process.wait()
        return (perf_counter() - begin) / cores * 1e3

    yield turn
