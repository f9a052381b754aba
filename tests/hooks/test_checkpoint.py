import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data import Rings
from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint

BATCHES = 6


def expected_names(unit: Any, by: Any, interval: Any, length: Any) -> Any:
    """The regular checkpoints of a whole run, oldest first: every interval, and the end."""
    iterations = length * BATCHES if unit == "epoch" else length
    if (by or unit) == "iter":
        counts = [count for count in range(1, iterations + 1) if count % interval == 0 or count == iterations]
        return [f"iter_{count:08d}.pt" for count in counts]
    epochs = range(interval, iterations // BATCHES + 1, interval)
    names = [f"epoch_{epoch:04d}.pt" for epoch in epochs]
    if iterations % BATCHES:
        names.append(f"iter_{iterations:08d}.pt")
    elif iterations // BATCHES not in epochs:
        names.append(f"epoch_{iterations // BATCHES:04d}.pt")
    return names


@settings(max_examples=30)
@given(
    unit=st.sampled_from(["epoch", "iter"]),
    by=st.sampled_from([None, "epoch", "iter"]),
    interval=st.integers(1, 9),
    length=st.integers(1, 20),
    val_interval=st.integers(1, 7),
    max_keep=st.sampled_from([1, 2, 5, None]),
)
def test_which_are_saved_and_kept(
    make: Any, unit: str, by: str | None, interval: int, length: int, val_interval: int, max_keep: int | None
) -> None:
    length = min(length, 5) if unit == "epoch" else length
    loop = {"epoch": EpochBasedTrainLoop, "iter": IterBasedTrainLoop}[unit](length, val_interval=val_interval)
    with tempfile.TemporaryDirectory() as folder:
        hook = Checkpoint(interval, by=by, max_keep=max_keep)
        make({"checkpoint": hook}, loop=loop, work_dir=folder).train()
        directory = Path(folder) / "checkpoints"
        kept = expected_names(unit, by, interval, length)[-(max_keep or 1000) :]
        noted = json.loads((directory / "last.json").read_text())
        assert noted == {"last": kept[-1], "history": kept}
        assert sorted(path.name for path in directory.iterdir()) == sorted([*kept, "best.pt", "last.json"])
        state = checkpoint.load(directory / kept[-1])
        assert state["loop"]["val_due"] is False, "what follows a validation holds its result"
        assert "val/loss" in state["member"]["metrics"]


def test_a_checkpoint_holds_the_weights_of_its_moment(make: Any, tmp_path: Path) -> None:
    """It is written by a thread of its own, while the training goes on."""
    weights = {}

    class Copy(Hook):
        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            weights[runner.iter] = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}

    make({"copy": Copy(), "checkpoint": Checkpoint(1, by="iter", max_keep=None)}, work_dir=tmp_path).train()
    files = sorted((tmp_path / "checkpoints").glob("iter_*.pt"))
    assert len(files) == len(weights) == 18
    for file in files:
        state = checkpoint.load(file)
        assert all(torch.equal(state["model"][name], tensor) for name, tensor in weights[state["iter"]].items())


VALUES = st.lists(st.sampled_from([0.1, 0.2, 0.3, float("nan")]), min_size=4, max_size=4)


@settings(max_examples=20)
@given(values=VALUES, direction=st.sampled_from(["minimize", "maximize"]), interval=st.integers(1, 3))
def test_the_best_is_the_first_with_the_best_objective(
    make: Any, scripted: Any, values: Any, direction: str, interval: int
) -> None:
    numbers = [value for value in values if value == value]
    with tempfile.TemporaryDirectory() as folder:
        hook = Checkpoint(interval, max_keep=None)
        metrics = {"loss": scripted(values)}
        make({"checkpoint": hook}, epochs=4, work_dir=folder, metrics=metrics, direction=direction).train()
        best = Path(folder) / "checkpoints" / "best.pt"
        assert best.exists() is bool(numbers)
        if numbers:
            extreme = (min if direction == "minimize" else max)(numbers)
            state = checkpoint.load(best)
            assert state["epoch"] == values.index(extreme) + 1
            assert state["member"]["best"] == {"value": extreme, "epoch": state["epoch"], "iter": state["iter"]}


def test_the_best_is_a_second_name_of_the_same_file(make: Any, scripted: Any, tmp_path: Path) -> None:
    metrics = {"loss": scripted([0.3, 0.1, 0.2])}
    make({"checkpoint": Checkpoint(max_keep=2)}, work_dir=tmp_path, metrics=metrics).train()
    directory = tmp_path / "checkpoints"
    assert (directory / "best.pt").samefile(directory / "epoch_0002.pt")


def test_the_best_outlives_the_file_that_it_shared(make: Any, scripted: Any, tmp_path: Path) -> None:
    metrics = {"loss": scripted([0.1, 0.2, 0.3])}
    make({"checkpoint": Checkpoint(max_keep=1)}, work_dir=tmp_path, metrics=metrics).train()
    directory = tmp_path / "checkpoints"
    assert not (directory / "epoch_0001.pt").exists()
    assert checkpoint.load(directory / "best.pt")["epoch"] == 1


def test_the_best_is_a_copy_where_there_are_no_hard_links(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    make({"checkpoint": Checkpoint()}, epochs=1, work_dir=tmp_path).train()
    directory = tmp_path / "checkpoints"
    assert (directory / "best.pt").read_bytes() == (directory / "epoch_0001.pt").read_bytes()
    assert not list(directory.glob(".*"))


def test_the_best_between_two_regular_ones_is_no_place_to_resume_from(make: Any, scripted: Any, tmp_path: Path) -> None:
    metrics = {"loss": scripted([0.1, 0.2, 0.3])}
    make({"checkpoint": Checkpoint(interval=3)}, work_dir=tmp_path, metrics=metrics).train()
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["epoch"] == 1
    assert checkpoint.read_last(tmp_path / "checkpoints") == ["epoch_0003.pt"]


def test_neither_best_nor_last(make: Any, tmp_path: Path) -> None:
    hook = Checkpoint(interval=2, save_best=False, save_last=False)
    make({"checkpoint": hook}, work_dir=tmp_path).train()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch_0002.pt", "last.json"]


@pytest.mark.parametrize("at", [4, 6])
def test_an_interrupted_run_is_saved_whatever_the_settings(
    make: Any, interrupt_at: Any, tmp_path: Path, at: int
) -> None:
    hooks = {"checkpoint": Checkpoint(interval=3, save_last=False), "stop": interrupt_at(at)}
    make(hooks, work_dir=tmp_path).train()
    state = checkpoint.newest(tmp_path / "checkpoints")[1]
    assert (state["epoch"], state["iter"]) == (0, at)


def test_what_was_being_written_is_finished_where_an_error_ends_the_run(make: Any, tmp_path: Path) -> None:
    class Broken(Hook):
        def before_train_epoch(self, runner: Runner) -> None:
            if runner.epoch == 2:
                raise LookupError("mine")

    with pytest.raises(LookupError):
        make({"checkpoint": Checkpoint(), "broken": Broken()}, work_dir=tmp_path).train()
    path, state = checkpoint.newest(tmp_path / "checkpoints")  # type: ignore[misc]
    assert (path.name, state["epoch"]) == ("epoch_0002.pt", 2)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_failed_member_is_not_saved(make: Any, tmp_path: Path) -> None:
    class Fail(Hook):
        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter == 8:
                runner.members[0].stop("broken", failed=True)

    make({"checkpoint": Checkpoint(), "fail": Fail()}, work_dir=tmp_path).train()
    assert checkpoint.read_last(tmp_path / "checkpoints") == ["epoch_0001.pt"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"interval": 0}, "interval: 0 is invalid. Expected an integer of at least 1"),
        ({"interval": 0.5}, "interval: 0.5 is invalid"),
        ({"by": "epochs"}, "by: 'epochs' is invalid. Expected one of epoch, iter, or null"),
        ({"by": "epochs"}, "Did you mean 'epoch'?"),
        ({"max_keep": 0}, "max_keep: 0 is invalid. Expected an integer of at least 1, or null to keep all"),
    ],
)
def test_settings_that_cannot_work(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Checkpoint(**settings)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("interval", "by", "expected"), [(None, None, [4, 8]), (3, None, [3, 6, 8]), (None, "epoch", [6, 8])]
)
def test_the_default_interval_is_that_of_validation(
    tmp_path: Path, interval: int | None, by: str | None, expected: Any
) -> None:
    runner = Runner(
        model=MLP(in_features=2, hidden=[4], num_classes=2),
        data=Rings(num_samples=320, batch_size=32),  # 6 batches an epoch
        optim={"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        loop=IterBasedTrainLoop(8, val_interval=4),
        hooks={"checkpoint": Checkpoint(interval, by=by, max_keep=None)},
        metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        work_dir=tmp_path,
        device="cpu",
    )
    runner.train()
    folder = tmp_path / "checkpoints"
    assert [checkpoint.load(folder / name)["iter"] for name in checkpoint.read_last(folder)] == expected
