"""Points of a stack: read for all members at once, and written by another thread than the one that trains."""

import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainyard.hooks import Logger
from trainyard.track import Journal, read, scalars
from trainyard.track.scalars import ScalarBuffer


class Operations(TorchDispatchMode):
    """Counts the calls of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(function)] += 1
        return function(*args, **(kwargs or {}))


def journals_of(folder: Path, count: int) -> list[Journal]:
    for index in range(count):
        (folder / str(index)).mkdir(parents=True)
    return [Journal(folder / str(index)) for index in range(count)]


def steps(journal: Journal) -> list[int]:
    assert journal.path is not None
    return [record["step"] for record, _ in read(journal.path)]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time does not cause a reading."""
    monkeypatch.setattr(scalars, "SECONDS", 1e9)


def logged(members: int, iterations: int, interval: int) -> Counter[str]:
    """Operations of the Logger and its buffer, for losses of two names and one that all members share."""
    buffer = ScalarBuffer()
    logger = Logger(interval, line_every=1e9)
    logger._journals = [Journal() for _ in range(members)]
    logger._next_line = float("inf")
    runner: Any = SimpleNamespace(
        iter=0,
        epoch=0,
        lanes_differ=False,
        scalars=buffer,
        gauges={"time": lambda: 0.5},
        learning_rates=lambda: [0.1] * members,
        strategy=SimpleNamespace(world_size=1),
        step=SimpleNamespace(weight=lambda batch, outputs: 1),  # as without accumulation
    )
    outputs = [
        {"loss": torch.rand(members), "grad_norm": torch.rand(members).double(), "scale": torch.rand(())}
        for _ in range(iterations)
    ]
    with Operations() as operations:
        for runner.iter, found in enumerate(outputs, 1):
            logger.after_train_iter(runner, 0, None, found)
        buffer.flush()
    for member, journal in enumerate(logger._journals):
        if interval == 1:
            assert journal.latest["train/loss"] == outputs[-1]["loss"][member].item()
            assert journal.latest["train/scale"] == outputs[-1]["scale"].item()
    return operations.count


@pytest.mark.parametrize("interval", [1, 5])
def test_as_many_operations_for_any_number_of_members(patient: None, interval: int) -> None:
    assert logged(2, 40, interval) == logged(64, 40, interval)


def test_a_point_of_every_iteration_needs_no_operation(patient: None) -> None:
    """The reading does, as many for any number of points: besides it, and the first two of a kind, there are none."""
    few, many = logged(3, 20, 1), logged(3, 400, 1)
    assert few == many
    assert few.total() < 100


def test_each_member_knows_the_step_of_its_latest_values(tmp_path: Path, patient: None) -> None:
    journals, buffer, losses = journals_of(tmp_path, 3), ScalarBuffer(), {"loss": torch.arange(3.0)}
    buffer.add(journals, [10, 20, 30], [1, 2, 3], losses, [0.1], {})
    buffer.add(journals, [11, 21, 31], [1, 2, 3], losses, [0.1], {}, (0, 2))
    assert [journal.latest_steps["train/loss"] for journal in journals] == [11, 20, 31]


def test_the_thread_that_trains_writes_nothing(tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points come in while others are being written; what is looked at is complete."""
    monkeypatch.setattr(scalars, "MOST", 4)
    go_on, writers = threading.Event(), set()
    write = Journal._write

    def slowly(self: Journal, text: str) -> None:
        writers.add(threading.get_ident())
        if threading.get_ident() != threading.main_thread().ident:
            go_on.wait()
        write(self, text)

    journals, buffer = journals_of(tmp_path, 3), ScalarBuffer()
    go_on.set()
    add(buffer, journals, range(1, 3))  # the first two of a kind are read at once
    buffer.flush()
    monkeypatch.setattr(Journal, "_write", slowly)
    go_on.clear()
    add(buffer, journals, range(3, 10))  # four are handed over, three wait
    assert [steps(journal) for journal in journals] == [[1, 2]] * 3
    go_on.set()
    assert journals[1].latest["train/loss"] == 10.0
    assert [steps(journal) for journal in journals] == [[*range(1, 10)]] * 3
    assert threading.get_ident() not in writers


def test_points_that_cannot_be_written_are_an_error_of_the_training(
    tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Journal, text: str) -> None:
        raise OSError("No space left on device")

    journals, buffer = journals_of(tmp_path, 2), ScalarBuffer()
    add(buffer, journals, range(1, 3))
    buffer.flush()
    add(buffer, journals, range(3, 6))
    monkeypatch.setattr(Journal, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        buffer.flush()
    add(buffer, journals, range(6, 9))
    buffer.hand_over()
    add(buffer, journals, range(9, 10))
    buffer.salvage()
    assert (
        "The last points of the training (4) could not be written to the journal: No space left on device"
        in caplog.text
    )


def add(buffer: ScalarBuffer, journals: Any, at: range) -> None:
    """Add a point for each step; the loss of member k is the step plus k."""
    for step in at:
        losses = {"loss": torch.arange(len(journals)).float() + step}
        buffer.add(journals, step, 0, losses, [0.1] * len(journals), {})
