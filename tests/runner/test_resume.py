"""A run that is killed with SIGKILL and resumed ends with the bits of the run that was never killed."""

import os
import random
import signal
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from trainyard.hooks import EMA, Checkpoint, EarlyStopping, Hook, IterTimer, Logger, ParamSchedule
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint
from trainyard.schedules import Plateau, Schedule
from trainyard.track import read

EPOCHS, ITERATIONS = 4, 36
SAMPLES, BATCH = 144, 16  # 9 batches an epoch


class KillAt(Hook):
    """Kills its own process after an iteration, or in the middle of a validation."""

    priority = "LOWEST"

    def __init__(self, iteration: Any, *, in_val: bool = False) -> None:
        self.iteration = iteration
        self.in_val = in_val

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.iteration and not self.in_val:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter >= self.iteration and self.in_val:
            os.kill(os.getpid(), signal.SIGKILL)


class Noisy(Dataset[Any]):
    """Points of two classes with noise that is drawn anew each time a sample is read, from all three generators."""

    def __init__(self, n: Any) -> None:
        rng = np.random.default_rng(0)
        self.y = torch.arange(n) % 2
        self.x = torch.from_numpy(rng.normal(size=(n, 2)).astype(np.float32)) + self.y[:, None]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: Any) -> Any:
        noise = torch.randn(2) + np.random.normal() + random.gauss(0, 1)
        return self.x[i] + 0.1 * noise, self.y[i]


def data(kind: Any) -> Any:
    if kind == "tensor":
        return {
            "_target_": "trainyard.data.Rings",
            "num_samples": 2 * SAMPLES,
            "batch_size": BATCH,
            "val_fraction": 0.5,
            "test_fraction": 0.0,
        }
    workers = {"dataloader": 0, "workers": 2}[kind]
    return {
        "train": DataLoader(Noisy(SAMPLES), batch_size=BATCH, shuffle=True, num_workers=workers),
        "val": DataLoader(Noisy(64), batch_size=64),
    }


def runner(
    work_dir: Any, loop: Any, kind: Any, *, resume: bool = False, schedule: str = "onecycle", **more: Any
) -> Any:
    unit = {"epoch": EpochBasedTrainLoop(EPOCHS), "iter": IterBasedTrainLoop(ITERATIONS, val_interval=7)}[loop]
    schedules = {
        "onecycle": lambda: Schedule(partial(OneCycleLR, max_lr="auto", total_steps="auto"), by="iter"),
        "plateau": lambda: Plateau(patience=0, threshold=0.05, factor=0.5),
    }
    hooks = {
        "logger": Logger(interval=4),
        "timer": IterTimer(),
        "schedule": ParamSchedule(),
        "ema": EMA(0.9),
        "stop": EarlyStopping(patience=100),
        "checkpoint": Checkpoint(interval=1 if loop == "epoch" else 5),
    }
    settings = {
        "model": MLP(in_features=2, hidden=[12], num_classes=2, dropout=0.2),
        "data": data(kind),
        "optim": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.02},
        "schedule": schedules[schedule](),
        "hooks": hooks | more.pop("hooks", {}),
        "metrics": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "loop": unit,
        "device": "cpu",
        "work_dir": work_dir,
        "resume": resume,
    }
    return Runner(**(settings | more))


def in_child(make: Any) -> Any:
    """Run in a process of its own; returns how it ended (0, or minus a signal)."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.manual_seed(0)
            make().train()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def outcome(work_dir: Any) -> Any:
    """What has to be equal to the bit: the last state, and every point of the journal but the times."""
    name = checkpoint.read_last(work_dir / "checkpoints")[-1]
    state = checkpoint.load(work_dir / "checkpoints" / name)
    state["hooks"].pop("timer", None)
    state["member"]["metrics"] = {k: v for k, v in state["member"]["metrics"].items() if "time" not in k}
    points = {}
    for record, _ in read(work_dir / "metrics.jsonl"):
        for key, value in record.get("values", {}).items():
            if "time" not in key:
                assert (key, record["step"]) not in points, f"{key} was logged twice at {record['step']}"
                points[key, record["step"]] = value
    best = checkpoint.load(work_dir / "checkpoints" / "best.pt")
    return name, state, points, best["eval_model"]


def assert_equal(a: Any, b: Any, where: str = "state") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of the run that is never killed, for each kind of run: made once."""
    made = {}

    def get(loop: Any, kind: Any, **more: Any) -> Any:
        key = (loop, kind, *sorted(more))
        if key not in made:
            work_dir = tmp_path_factory.mktemp("undisturbed")
            assert in_child(lambda: runner(work_dir, loop, kind, **more)) == 0
            made[key] = outcome(work_dir)
        return made[key]

    return get


PLACES = random.Random(20261120).sample(range(1, ITERATIONS), 4)


@pytest.mark.parametrize("kind", ["tensor", "dataloader", "workers"])
@pytest.mark.parametrize("loop", ["epoch", "iter"])
def test_killed_again_and_again(tmp_path: Path, undisturbed: Any, loop: str, kind: str) -> None:
    for place in sorted(PLACES):
        assert (
            in_child(lambda at=place: runner(tmp_path, loop, kind, resume=True, hooks={"kill": KillAt(at)}))
            == -signal.SIGKILL
        )
    assert in_child(lambda: runner(tmp_path, loop, kind, resume=True)) == 0
    assert_equal(outcome(tmp_path), undisturbed(loop, kind))


@pytest.mark.parametrize("loop", ["epoch", "iter"])
@pytest.mark.parametrize("iteration", [9, 18, 35])
def test_killed_around_the_end_of_an_epoch(tmp_path: Path, undisturbed: Any, loop: str, iteration: int) -> None:
    kill = {"kill": KillAt(iteration)}
    assert in_child(lambda: runner(tmp_path, loop, "tensor", hooks=kill)) == -signal.SIGKILL
    assert in_child(lambda: runner(tmp_path, loop, "tensor", resume=True)) == 0
    assert_equal(outcome(tmp_path), undisturbed(loop, "tensor"))


@pytest.mark.parametrize("loop", ["epoch", "iter"])
def test_killed_during_validation(tmp_path: Path, undisturbed: Any, loop: str) -> None:
    kill = {"kill": KillAt(14, in_val=True)}
    assert in_child(lambda: runner(tmp_path, loop, "tensor", hooks=kill)) == -signal.SIGKILL
    assert in_child(lambda: runner(tmp_path, loop, "tensor", resume=True)) == 0
    assert_equal(outcome(tmp_path), undisturbed(loop, "tensor"))


def test_a_schedule_that_looks_at_a_metric(tmp_path: Path, undisturbed: Any) -> None:
    more = {"schedule": "plateau"}
    assert in_child(lambda: runner(tmp_path, "epoch", "tensor", hooks={"kill": KillAt(31)}, **more)) == -signal.SIGKILL
    assert in_child(lambda: runner(tmp_path, "epoch", "tensor", resume=True, **more)) == 0
    assert_equal(outcome(tmp_path), undisturbed("epoch", "tensor", **more))


def test_gradients_in_accumulation_are_carried_over(tmp_path: Path, undisturbed: Any) -> None:
    more = {"accumulate": 4}
    hooks = {"checkpoint": Checkpoint(interval=1, by="iter", max_keep=3)}
    kill = hooks | {"kill": KillAt(15)}
    assert in_child(lambda: runner(tmp_path, "epoch", "tensor", hooks=kill, **more)) == -signal.SIGKILL
    assert in_child(lambda: runner(tmp_path, "epoch", "tensor", resume=True, hooks=hooks, **more)) == 0
    _, state, points, best = outcome(tmp_path)
    _, expected, expected_points, expected_best = undisturbed("epoch", "tensor", **more)
    assert_equal([state["model"], points, best], [expected["model"], expected_points, expected_best])


def test_a_damaged_newest_checkpoint_costs_only_time(tmp_path: Path, undisturbed: Any) -> None:
    assert in_child(lambda: runner(tmp_path, "epoch", "tensor", hooks={"kill": KillAt(31)})) == -signal.SIGKILL
    newest = tmp_path / "checkpoints" / checkpoint.read_last(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert in_child(lambda: runner(tmp_path, "epoch", "tensor", resume=True)) == 0
    assert_equal(outcome(tmp_path), undisturbed("epoch", "tensor"))


def test_a_finished_run_stays_as_it_is(tmp_path: Path, undisturbed: Any) -> None:
    for _ in range(2):
        assert in_child(lambda: runner(tmp_path, "epoch", "tensor", resume=True)) == 0
    assert_equal(outcome(tmp_path), undisturbed("epoch", "tensor"))


@pytest.mark.parametrize("loop", ["epoch", "iter"])
def test_interrupted_twice_and_resumed(tmp_path: Path, undisturbed: Any, loop: str) -> None:
    class Interrupt(Hook):
        def __init__(self, at: Any) -> None:
            self.at = at

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter == self.at:
                runner.interrupt()

        def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter == -self.at:
                runner.interrupt()

    for at in (5, -9 if loop == "epoch" else -14, 18, 23):
        hooks = {"interrupt": Interrupt(at)}
        assert in_child(lambda h=hooks: runner(tmp_path, loop, "tensor", resume=True, hooks=h)) == 0
    assert in_child(lambda: runner(tmp_path, loop, "tensor", resume=True)) == 0
    assert_equal(outcome(tmp_path), undisturbed(loop, "tensor"))
