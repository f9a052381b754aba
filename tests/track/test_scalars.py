"""Points that wait: nobody sees fewer of them than there are, and none is lost or written twice."""

import json
import math
import os
import signal
import tempfile
import threading
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data import Rings
from trainyard.hooks import Checkpoint, Hook, IterTimer, Logger
from trainyard.models import MLP, Supervised
from trainyard.runner import EpochBasedTrainLoop, Member, Objective, Runner
from trainyard.track import Journal, read, scalars
from trainyard.track.scalars import ScalarBuffer

numbers = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3e38])
LOSSES = st.dictionaries(st.sampled_from(["loss", 'odd "%s": nan', "grad_norm", "lr"]), numbers)
GAUGES = st.dictionaries(st.sampled_from(["time", "loss", "skipped"]), st.floats())
POINT = st.tuples(LOSSES, st.floats(0, 1), GAUGES, st.booleans())
OTHERS = st.sampled_from(["read", "metrics", "state", "status", "record", "array", "nothing"])


def lines(folder: Any) -> Any:
    """The journal without its times."""
    text = Path(folder, "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    for record in found:
        assert record.pop("time") > 1.7e9
    return [json.dumps(record) for record in found]


def members(stack: Any, count: Any) -> Any:
    """Members with a journal each."""
    made = [Member(0, Path(stack.enter_context(tempfile.TemporaryDirectory())), Objective()) for _ in range(count)]
    for member in made:
        member.journal = stack.enter_context(Journal(member.directory))
    return made


def spread(value: Any, count: Any) -> Any:
    """One number for each member."""
    return [value + index for index in range(count)]


@settings(max_examples=60)
@given(stream=st.lists(st.tuples(POINT, OTHERS), max_size=20), count=st.integers(1, 3), most=st.integers(1, 6))
def test_the_journal_is_as_if_each_point_were_written_at_once(stream: Any, count: int, most: int) -> None:
    before, scalars.MOST = scalars.MOST, most
    try:
        with ExitStack() as stack:
            later, now, buffer = members(stack, count), members(stack, count), ScalarBuffer()
            journals = [member.journal for member in later]
            for step, ((losses, rate, gauges, each), other) in enumerate(stream, 1):
                shape = (count,) if count > 1 else ()
                tensors = {name: torch.tensor(spread(value, count)).view(shape) for name, value in losses.items()}
                rates = spread(rate, count)
                read_now = {name: spread(value, count) if each else value for name, value in gauges.items()}
                given = {name: lambda value=value: value for name, value in read_now.items()}
                buffer.add(journals, step, step // 3, tensors, rates, given)
                for index, member in enumerate(now):
                    values = {name: float(tensor.reshape(-1)[index]) for name, tensor in tensors.items()}
                    values |= {"lr": rates[index]}
                    values |= {name: value[index] if each else value for name, value in read_now.items()}
                    member.record(
                        {f"train/{name}": value for name, value in values.items()}, step=step, epoch=step // 3
                    )
                for one, two in zip(later, now, strict=True):
                    if other == "metrics":
                        assert repr(one.metrics) == repr(two.metrics)
                    elif other == "state":
                        assert repr(one.state_dict()) == repr(two.state_dict())
                    elif other == "read":
                        buffer.flush()
                    for member in (one, two):
                        if other == "status":
                            member.journal.status("RUNNING")
                        elif other == "record":
                            member.record({"val/loss": float(step)}, step=step, epoch=0)
                        elif other == "array":
                            member.journal.array("confusion", step, [[step]])
                    if other != "nothing":
                        assert lines(one.directory) == lines(two.directory)
            buffer.flush()
            for one, two in zip(later, now, strict=True):
                assert lines(one.directory) == lines(two.directory)
                assert repr(one.metrics) == repr(two.metrics)
    finally:
        scalars.MOST = before


@given(
    st.lists(st.tuples(numbers, st.sampled_from([torch.float32, torch.bfloat16, torch.float64])), min_size=1),
    st.integers(1, 3),
    st.booleans(),
)
def test_tensors_are_read_together_as_they_are_one_by_one(values: Any, count: int, some_alone: bool) -> None:
    shape = (count,) if count > 1 else ()
    tensors = [torch.full(shape, value).to(dtype) for value, dtype in values]
    if some_alone:
        tensors.append(torch.tensor(0.5))
    found = scalars._begin_to_read(tensors, count)()
    assert found.shape == (len(tensors), count)
    for row, tensor in zip(found, tensors, strict=True):
        assert repr(row.tolist()) == repr(tensor.expand(count).double().tolist())


def make(
    work_dir: Any, hooks: Any = None, *, logger: Any = None, model: Any = None, epochs: int = 3, **more: Any
) -> Any:
    hooks = {"timer": IterTimer(), "logger": logger or Logger(1), **(hooks or {})}
    return Runner(
        model=model or MLP(in_features=2, hidden=[8], num_classes=2),
        data=Rings(num_samples=320, batch_size=32),  # 6 batches an epoch
        optim={"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        hooks=hooks,
        metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        loop=EpochBasedTrainLoop(epochs),
        work_dir=work_dir,
        **({"device": "cpu"} | more),
    )


def steps(folder: Any, name: str = "train/loss") -> Any:
    records = [record for record, _ in read(folder / "metrics.jsonl")]
    return [record["step"] for record in records if name in record.get("values", {})]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points wait until somebody looks, however slow the machine is."""
    monkeypatch.setattr(scalars, "SECONDS", 1e9)


class Do(Hook):
    """Calls a function after an iteration."""

    priority = "LOWEST"

    def __init__(self, at: Any, function: Any) -> None:
        self.at = at
        self.function = function

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.at:
            self.function(runner)


def test_points_wait_until_somebody_looks(tmp_path: Path, patient: Any) -> None:
    seen = []

    def look(runner: Any) -> None:
        seen.append(steps(tmp_path))
        thread = threading.Thread(target=lambda: seen.append(runner.members[0].metrics.get("train/loss")))
        thread.start()
        thread.join()
        seen.append(steps(tmp_path))
        assert runner.members[0].metrics["train/loss"] > 0
        seen.append(steps(tmp_path))

    make(tmp_path, {"look": Do(5, look)}).train()
    early = seen[0]
    assert len(early) == 2  # the first of each kind
    assert seen[2] == early  # another thread reads nothing
    assert seen[3] == [*range(1, 6)]
    assert steps(tmp_path) == [*range(1, 19)]


def test_a_checkpoint_is_never_ahead_of_the_journal(tmp_path: Path, patient: Any) -> None:
    class Look(Hook):
        def before_save_checkpoint(self, runner: Runner, checkpoint: Any) -> None:
            found.append((checkpoint["iter"], steps(tmp_path), checkpoint["member"]["metrics"]["train/loss"]))

    found: list[Any] = []
    make(tmp_path, {"checkpoint": Checkpoint(interval=5, by="iter"), "look": Look()}).train()
    values = {
        record["step"]: record["values"]["train/loss"]
        for record, _ in read(tmp_path / "metrics.jsonl")
        if "train/loss" in record.get("values", {})
    }
    assert {5, 10, 15} <= {iteration for iteration, _, _ in found}
    for iteration, written, loss in found:
        assert written == [*range(1, iteration + 1)]
        assert loss == values[iteration]


def in_child(work: Any) -> Any:
    """Run in a process of its own; returns how it ended (0, or minus a signal)."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_killed_with_points_waiting_is_complete_once_resumed(
    tmp_path: Path, patient: Any, accumulate: int
) -> None:
    def train(folder: Any, *, kill: Any = None) -> None:
        hooks = {"checkpoint": Checkpoint(interval=4, by="iter")}
        if kill is not None:
            hooks["kill"] = Do(kill, lambda runner: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[assignment]
        make(folder, hooks, resume=True, accumulate=accumulate, clip_grad_norm=1.0).train()

    train(tmp_path / "whole")
    folder = tmp_path / "parts"
    for at in (5, 10, 17):
        assert in_child(lambda kill=at: train(folder, kill=kill)) == -signal.SIGKILL
        assert steps(folder)[-1] < at  # some have been lost
    train(folder)
    for name in ("train/loss", "train/grad_norm", "train/lr", "train/time"):
        assert steps(folder, name) == steps(tmp_path / "whole", name)
    assert steps(folder) == [*range(1, 19)]


def test_the_points_before_an_error_are_in_the_journal(tmp_path: Path, patient: Any) -> None:
    def fail(runner: Any) -> None:
        raise ValueError("the disk is upside down")

    with pytest.raises(ValueError, match="upside down"):
        make(tmp_path, {"fail": Do(5, fail)}).train()
    assert steps(tmp_path) == [*range(1, 6)]
    assert [record for record, _ in read(tmp_path / "metrics.jsonl")][-1]["status"] == "FAILED"


def test_a_device_that_does_not_answer_hides_no_error(
    tmp_path: Path, patient: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(runner: Any) -> None:
        monkeypatch.setattr(ScalarBuffer, "_points", lambda *_: 1 / 0)
        raise ValueError("the device is gone")

    with pytest.raises(ValueError, match="device is gone"):
        make(tmp_path, {"fail": Do(5, fail)}).train()
    assert "The last points of the training (3) could not be written to the journal" in caplog.text
    last = [record for record, _ in read(tmp_path / "metrics.jsonl")][-1]
    assert (last["status"], last["message"]) == ("FAILED", "ValueError: the device is gone")


class Scaled(torch.nn.Module):
    """Gives out its learned temperature beside the loss: memory that each step writes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Supervised(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss())
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Any, y: Any, mode: Any) -> Any:
        if mode != "loss":
            return self.inner(x, y, mode=mode)
        logits = self.inner(x, y, mode="predict")
        loss = torch.nn.functional.cross_entropy(self.scale * logits, y)
        return {"loss": loss, "scale": self.scale}


def test_memory_that_is_written_anew_is_copied(tmp_path: Path, patient: Any) -> None:
    class Seen(Hook):
        priority = "HIGHEST"

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            scales[runner.iter] = runner.model.scale.item()

    scales: dict[Any, Any] = {}
    make(tmp_path, {"seen": Seen()}, model=Scaled()).train()
    values = {
        record["step"]: record["values"]["train/scale"]
        for record, _ in read(tmp_path / "metrics.jsonl")
        if "train/scale" in record.get("values", {})
    }
    assert values == scales
    assert len(set(scales.values())) == len(scales)


@pytest.mark.gpu
def test_on_the_device_a_point_waits_for_nothing(tmp_path: Path, patient: Any) -> None:
    class Sync(Hook):
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if runner.iter > 4 else "default")

        def after_train_epoch(self, runner: Runner) -> None:
            torch.cuda.set_sync_debug_mode("default")

    make(tmp_path, {"sync": Sync()}, epochs=1, device="cuda").train()
    assert steps(tmp_path) == [*range(1, 7)]
