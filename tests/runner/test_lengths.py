"""Training data whose length is unknown, an estimate, wrong, different in each epoch, nothing, or without end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interrupting import InterruptAt
from streams import CLASSES, FEATURES, Buckets, StatefulLoader, StatefulStream, Stream, sample
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data.lengths import exact_length, length_hint
from trainyard.errors import ConfigError, TrainyardError
from trainyard.hooks import EMA, Checkpoint, Hook, Logger, LRFinder, ParamSchedule, TestTimeAugmentation
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint
from trainyard.schedules import Schedule
from trainyard.track import read

some = settings(max_examples=20)
EPOCHS = 3
VAL = TensorDataset(torch.stack([sample(n)[0] for n in range(8)]), torch.arange(8) % CLASSES)


class Seen(Hook):
    """Notes the samples of each epoch, by the runner's position."""

    def __init__(self) -> None:
        self.samples: dict[int, list[int]] = {}
        self.indices: dict[int, list[int]] = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        assert batch_idx == runner.batches_done
        self.samples.setdefault(runner.epoch, []).extend(int(number) for number in data_batch[0][:, 0])
        self.indices.setdefault(runner.epoch, []).append(batch_idx)


def make(train: Any, loop: Any = None, hooks: Mapping[str, Any] | None = None, **more: Any) -> Runner:
    torch.manual_seed(3)  # of the weights
    settings = {
        "model": MLP(in_features=FEATURES, hidden=[6], num_classes=CLASSES, dropout=0.2),
        "data": {"train": train, "val": DataLoader(VAL, 4)},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01, "momentum": 0.9},
        "loop": EpochBasedTrainLoop(EPOCHS) if loop is None else loop,
        "metrics": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "hooks": hooks or {},
        "device": "cpu",
    }
    return Runner(**(settings | more))


def weights(runner: Runner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in runner.model.parameters()])


# -- every batch, once an epoch ----------------------------------------------------------------------------------------


@some
@given(n=st.integers(1, 20), said=st.one_of(st.none(), st.integers(0, 40)), accumulate=st.integers(1, 3))
def test_an_epoch_is_all_that_comes(n: int, said: int | None, accumulate: int) -> None:
    seen = Seen()
    runner = make(DataLoader(Stream(n, said), 3), hooks={"seen": seen}, accumulate=accumulate)
    runner.train()
    assert seen.samples == {epoch: list(range(n)) for epoch in range(EPOCHS)}
    assert (runner.epoch, runner.batches_done, runner.iter) == (EPOCHS, 0, EPOCHS * -(-n // 3))


@some
@given(n=st.integers(1, 20), said=st.one_of(st.none(), st.integers(0, 40)), iterations=st.integers(1, 15))
def test_an_iteration_loop_goes_round(n: int, said: int | None, iterations: int) -> None:
    seen = Seen()
    make(DataLoader(Stream(n, said), 3), IterBasedTrainLoop(iterations, val_interval=4), {"seen": seen}).train()
    batches = -(-n // 3)
    flat = [index for epoch in sorted(seen.indices) for index in seen.indices[epoch]]
    assert flat == [iteration % batches for iteration in range(iterations)]


def test_workers_that_share_out_the_samples() -> None:
    """Five samples each are two batches each: four, where the length says three."""
    seen = Seen()
    loader = DataLoader(Stream(10, 10), 4, num_workers=2)
    runner = make(loader, EpochBasedTrainLoop(2), {"seen": seen}, accumulate=3)
    runner.train()
    assert [sorted(seen.samples[epoch]) for epoch in (0, 1)] == [list(range(10))] * 2
    assert (len(loader), runner.iter) == (3, 8)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_batches_of_another_number_in_each_epoch(accumulate: int) -> None:
    seen = Seen()
    sampler = Buckets([1 + (7 * i) % 23 for i in range(40)])
    data = TensorDataset(torch.stack([sample(n)[0] for n in range(40)]), torch.arange(40) % CLASSES)
    runner = make(
        DataLoader(data, batch_sampler=sampler), EpochBasedTrainLoop(4), {"seen": seen}, accumulate=accumulate
    )
    runner.train()
    assert [sorted(numbers) for numbers in seen.samples.values()] == [list(range(40))] * 4
    assert len({len(indices) for indices in seen.indices.values()}) > 1


@some
@given(n=st.integers(1, 20), accumulate=st.integers(1, 5), said=st.one_of(st.none(), st.integers(1, 40)))
def test_a_short_last_group_steps_as_where_the_length_is_known(n: int, accumulate: int, said: int | None) -> None:
    samples = [sample(number) for number in range(n)]
    known = TensorDataset(torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples]))
    ends = []
    for train in (DataLoader(known, 3), DataLoader(Stream(n, said), 3)):
        model = MLP(in_features=FEATURES, hidden=[], num_classes=CLASSES)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        runner = make(train, model=model, accumulate=accumulate, clip_grad_norm=1.0)
        runner.train()
        assert all(parameter.grad is None for parameter in runner.model.parameters())
        ends.append(weights(runner))
    assert torch.equal(*ends)


def test_an_endless_stream_ends_with_the_iterations() -> None:
    seen = Seen()
    make(DataLoader(Stream(None), 2), IterBasedTrainLoop(7, val_interval=3), {"seen": seen}, accumulate=2).train()
    assert seen.samples == {0: list(range(14))}


def test_an_epoch_loop_without_a_length_is_told_of_iterations(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make(DataLoader(Stream(6), 2)).train()
        make(DataLoader(Stream(6, 6), 2)).train()
    (told,) = [record.getMessage() for record in caplog.records if "has no length" in record.getMessage()]
    assert "IterBasedTrainLoop" in told


# -- nothing to train on -----------------------------------------------------------------------------------------------


class Once(Stream):
    """Can be read only once."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.numbers = iter(range(n))

    def __iter__(self) -> Any:
        return (sample(number) for number in self.numbers)


@pytest.mark.parametrize("loop", [EpochBasedTrainLoop(2), IterBasedTrainLoop(9, val_interval=2)], ids=["epoch", "iter"])
def test_nothing_is_an_error_that_names_the_split(loop: Any) -> None:
    nothing, something = DataLoader(Stream(0), 2), DataLoader(Stream(4), 2)
    with pytest.raises(TrainyardError, match="'train' has no batches\\. The data set is empty, or drop_last"):
        make(nothing, loop).train()
    with pytest.raises(TrainyardError, match="'val/hard' has no batches"):
        make(None, loop, data={"train": something, "val": {"easy": something, "hard": nothing}}).train()
    with pytest.raises(TrainyardError, match="'train' has no batches in epoch 2\\. A stream must restart"):
        make(DataLoader(Once(4), 2), loop).train()
    with pytest.raises(TrainyardError, match="'test' has no batches"):
        make(None, data={"test": nothing}).test()
    with pytest.raises(TrainyardError, match="'train' has no batches"):
        make(nothing, loop, {"finder": LRFinder()}).train()
    with pytest.raises(TrainyardError, match="'test' has no batches"):
        make(None, loop, {"flips": TestTimeAugmentation()}, data={"train": something, "test": nothing}).train()


# -- resumed -----------------------------------------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818
    """The end of a process."""


class KillAt(Hook):
    """Ends a run after an iteration by an error that nothing handles."""

    priority = "LOWEST"

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.iteration:
            raise Killed


def loader(kind: str, n: int, said: int | None) -> DataLoader[Any]:
    if kind == "buckets":
        data = TensorDataset(torch.stack([sample(i)[0] for i in range(n)]), torch.arange(n) % CLASSES)
        return DataLoader(data, batch_sampler=Buckets([1 + (7 * i) % 23 for i in range(n)], cap=50))
    if kind == "stateful loader":
        return StatefulLoader(Stream(n, said, noisy=True), 3)
    return DataLoader((StatefulStream if kind == "stateful" else Stream)(n, said, noisy=True), 3)


def outcome(folder: Path) -> tuple[Any, Any]:
    """The last state, and the points of the journal."""
    _, state = checkpoint.newest(folder / "checkpoints") or (None, {})
    points = [
        (record["step"], record["epoch"], record["values"])
        for record, _ in read(folder / "metrics.jsonl")
        if "values" in record
    ]
    return state, points


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


KINDS = ("stream", "stateful", "stateful loader", "buckets")


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")  # of torch's own loader, where the hint is too small
@example(kind="stateful", n=3, said=None, accumulate=1, by_epoch=False, often=False, ends=[(11, False)])
@example(kind="stateful", n=10, said=None, accumulate=1, by_epoch=True, often=False, ends=[(12, False)])  # at its end
@settings(max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 14),
    said=st.one_of(st.none(), st.integers(1, 30)),
    accumulate=st.integers(1, 3),
    by_epoch=st.booleans(),
    often=st.booleans(),
    ends=st.lists(st.tuples(st.integers(1, 14), st.booleans()), min_size=1, max_size=2),
)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(
    kind: str, n: int, said: int | None, accumulate: int, by_epoch: bool, often: bool, ends: list[tuple[int, bool]]
) -> None:
    """Ended at any iteration, by a kill or by Ctrl-C; dropout and the data's noise draw from the same generator."""

    def run(folder: Path, hooks: Mapping[str, Any]) -> None:
        own = {
            "checkpoint": Checkpoint(interval=2, by="iter") if often else Checkpoint(interval=1, by="epoch"),
            "logger": Logger(interval=4, window={"loss": "epoch"}),
            "ema": EMA(0.9, begin=2 if by_epoch else 1, interval=2),
        }
        loop = EpochBasedTrainLoop(EPOCHS) if by_epoch else IterBasedTrainLoop(11, val_interval=4)
        more = {"work_dir": folder, "resume": True, "accumulate": accumulate}
        make(loader(kind, n, said), loop, own | hooks, **more).train()

    with TemporaryDirectory() as name:
        whole, parts = Path(name, "whole"), Path(name, "parts")
        run(whole, {})
        for iteration, killed in sorted(ends):
            with suppress(Killed):
                run(parts, {"end": KillAt(iteration) if killed else InterruptAt(iteration)})
        run(parts, {})
        (one, points), (other, others) = outcome(whole), outcome(parts)
    for state in (one, other):
        state["hooks"].pop("end", None)
    assert_same(other, one)
    assert_same(others, points)


@pytest.mark.parametrize("kind", ["stream", "stateful"])
def test_a_stream_goes_on_by_its_state_or_by_reading(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = {"checkpoint": Checkpoint()}
    make(loader(kind, 30, None), hooks=hooks | {"end": InterruptAt(8)}, work_dir=tmp_path).train()
    data = loader(kind, 30, None)
    seen = Seen()
    with caplog.at_level(logging.INFO, "trainyard"):
        make(data, hooks=hooks | {"seen": seen}, work_dir=tmp_path, resume=True).train()
    told = [record.getMessage() for record in caplog.records if "cannot restore its position" in record.getMessage()]
    assert len(told) == (kind == "stream")
    assert all(message.startswith("Stream cannot restore its position. ") for message in told)
    assert all("the first 8 batches are dropped" in message for message in told)
    assert seen.indices[0] == [8, 9]
    if isinstance(data.dataset, StatefulStream):
        assert data.dataset.read == 30 * EPOCHS - 8 * 3


def test_a_state_that_no_checkpoint_can_hold_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Odd(StatefulStream):
        def state_dict(self) -> Any:
            return {**super().state_dict(), "odd": object()}

    def odd() -> Any:
        return DataLoader(Odd(30), 3)

    hooks = {"checkpoint": Checkpoint()}
    make(odd(), hooks=hooks | {"end": InterruptAt(4)}, work_dir=tmp_path).train()
    assert "The state of Odd contains objects other than tensors and plain values" in caplog.text
    seen = Seen()
    make(odd(), hooks=hooks | {"seen": seen}, work_dir=tmp_path, resume=True).train()
    assert seen.indices[0] == list(range(4, 10))


def test_other_data_than_the_checkpoint_has_seen(tmp_path: Path) -> None:
    hooks = {"checkpoint": Checkpoint()}
    make(DataLoader(Stream(12), 2), hooks=hooks | {"end": InterruptAt(5)}, work_dir=tmp_path).train()
    with pytest.raises(ConfigError, match="saved within an epoch with batch size 2, but the batch size is now 3"):
        make(DataLoader(Stream(12), 3), work_dir=tmp_path, resume=True).train()
    with pytest.raises(TrainyardError, match="ends after 3 batches of an epoch, but this run has already read 5"):
        make(DataLoader(Stream(6), 2), work_dir=tmp_path, resume=True).train()


def test_a_checkpoint_of_an_earlier_version(tmp_path: Path) -> None:
    """It counts batches by the length that the loader stated, which was right where such a run went well."""

    def run(folder: str, hooks: Mapping[str, Any]) -> None:
        own = {"checkpoint": Checkpoint(), "ema": EMA(0.9, begin=2, interval=2)}
        make(loader("stream", 12, 12), hooks=own | hooks, work_dir=tmp_path / folder, resume=True).train()

    run("whole", {})
    run("parts", {"end": InterruptAt(7)})
    path, state = checkpoint.newest(tmp_path / "parts/checkpoints") or (Path(), {})
    del state["data"], state["batches_done"], state["hooks"]["ema"]["first"], state["loop"]["val_places"]
    checkpoint.save(path, state | {"batches": 4})
    run("parts", {})
    states = [outcome(tmp_path / name)[0] for name in ("whole", "parts")]
    for state in states:
        state["hooks"].pop("end", None)
        del state["member"]
    assert_same(states[1], states[0])


# -- what counts epochs ------------------------------------------------------------------------------------------------


def test_hooks_by_epoch(tmp_path: Path) -> None:
    """Five batches an epoch, where the length says two."""

    class Began(Hook):
        def __init__(self) -> None:
            self.iterations: list[int] = []

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.eval_model is not runner.model:
                self.iterations.append(runner.iter)

    began = Began()
    hooks = {
        "checkpoint": Checkpoint(interval=1, max_keep=None),
        "ema": EMA(0.9, begin=3),
        "began": began,
        "logger": Logger(interval=3, window="epoch"),
    }
    runner = make(DataLoader(Stream(10, 4), 2), EpochBasedTrainLoop(3, val_interval=2), hooks, work_dir=tmp_path)
    runner.train()
    assert checkpoint.read_last(tmp_path / "checkpoints") == [f"epoch_{number:04d}.pt" for number in (1, 2, 3)]
    assert began.iterations[0] == 11
    _, points = outcome(tmp_path)
    assert [(step, epoch) for step, epoch, _ in points if step % 5] == [(3, 0), (6, 1), (9, 1), (12, 2)]


def test_the_position_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    def lines(said: int | None, by: str | None) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "trainyard"):
            hooks = {"logger": Logger(3, line_every=0, by=by)}
            make(DataLoader(Stream(8, said), 2), EpochBasedTrainLoop(2), hooks).train()
        return [
            record.getMessage().split("  loss ")[0]
            for record in caplog.records
            if getattr(record, "of_progress", False)
        ]

    assert lines(None, "epoch") == ["epoch 1/2  iter 3", "epoch 2/2  iter 2", "epoch 2/2  iter 4"]
    assert lines(4, "epoch") == ["epoch 1/2  iter 3", "epoch 2/2  iter 2/2", "epoch 2/2  iter 4"]
    assert lines(None, None) == ["epoch 1/2  iter 3", "epoch 2/2  iter 6", "epoch 2/2  iter 8"]
    assert lines(20, "iter") == ["iter 3/20", "iter 6/20", "iter 8/20"]


def test_turns_of_validation_go_on_in_a_stream(tmp_path: Path) -> None:
    """Batches of two of five samples: three to an epoch, where the length says two."""

    class Batches(Hook):
        def __init__(self) -> None:
            self.firsts: list[int] = []

        def before_val_loss_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
            self.firsts.append(int(data_batch[0][0, 0]))

    def run(hooks: dict[str, Any], **more: Any) -> list[int]:
        seen = Batches()
        loop = IterBasedTrainLoop(6, val_interval=100, workflow=[["train", 2], ["val", 2]])
        data = {"train": DataLoader(Stream(20), 2), "val": DataLoader(Stream(5, 4), 2)}
        make(None, loop, hooks | {"seen": seen, "checkpoint": Checkpoint()}, data=data, **more).train()
        return seen.firsts

    assert run({}) == [0, 2, 4, 0, 2, 4]
    assert run({"end": InterruptAt(3)}, work_dir=tmp_path) == [0, 2]
    assert run({}, work_dir=tmp_path, resume=True) == [4, 0, 2, 4]


# -- schedules ---------------------------------------------------------------------------------------------------------


class Rates(Hook):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.rates.append(round(runner.learning_rates()[0], 9))


def rates(said: int | None, scheduler: Any, **more: Any) -> list[float]:
    seen = Rates()
    schedule = Schedule(scheduler, by="iter", **more)
    hooks = {"rates": seen, "schedule": ParamSchedule()}
    optim = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1.0}
    make(DataLoader(Stream(8, said), 2), EpochBasedTrainLoop(3), hooks, schedule=schedule, optim=optim).train()
    return seen.rates


@pytest.mark.parametrize("said", [None, 2, 8, 40])
def test_a_schedule_that_counts_needs_no_length(said: int | None) -> None:
    assert rates(said, partial(StepLR, step_size=5, gamma=0.5)) == [1.0] * 5 + [0.5] * 5 + [0.25] * 2


def test_a_schedule_by_an_estimate_that_is_too_small_stays_at_its_end() -> None:
    exact = rates(4, partial(CosineAnnealingLR, T_max="auto"))
    assert rates(4, partial(CosineAnnealingLR, T_max=6))[-1] > 0.5  # it rises again, as torch's does
    assert exact[5:] == exact[5:6] * 7
    assert rates(8, partial(CosineAnnealingLR, T_max="auto"))[-1] < 0.1
    assert len(set(rates(None, partial(OneCycleLR, max_lr=1.0, total_steps=6))[5:])) == 1


@pytest.mark.parametrize(
    ("key", "scheduler", "more"),
    [
        ("schedule.scheduler.T_max", partial(CosineAnnealingLR, T_max="auto"), {}),
        ("schedule.scheduler.T_max", partial(CosineAnnealingLR, T_max=0.5), {}),
        ("schedule.scheduler.total_steps", partial(OneCycleLR, max_lr=1.0, total_steps="auto"), {}),
        ("schedule.warmup", partial(StepLR, step_size=5), {"warmup": 0.1}),
        ("schedule.begin", partial(StepLR, step_size=5), {"begin": 0.1}),
        ("schedule.end", partial(StepLR, step_size=5), {"end": 0.5}),
    ],
)
def test_a_schedule_that_needs_the_length_says_so(key: str, scheduler: Any, more: Any) -> None:
    with pytest.raises(ConfigError, match="The training data has no length") as caught:
        rates(None, scheduler, **more)
    assert caught.value.key == key


def test_hints() -> None:
    runner = make(DataLoader(Stream(8, 10), 2))
    assert (exact_length(runner.loader("train")), length_hint(runner.loader("train"))) == (None, 5)
    assert (exact_length(runner.loader("val")), length_hint(runner.loader("val"))) == (2, 2)
    assert runner.train_loop.max_iters(runner) == 15
    unknown = make(DataLoader(Stream(8), 2), IterBasedTrainLoop(5))
    assert unknown.train_loop.max_epochs(unknown) is None
