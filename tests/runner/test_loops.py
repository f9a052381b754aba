"""The order of things in both loops, on real trainings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data import ArrayData
from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from trainyard.runner.dispatch import STAGES

CPU = torch.device("cpu")
LOOPS = {"epoch": EpochBasedTrainLoop, "iter": IterBasedTrainLoop}


class Recorder(Hook):
    """Notes every stage, with what the runner counts at that moment."""

    priority = "LOWEST"

    def __init__(self, *left_out: Any) -> None:
        self.calls: list[Any] = []
        self.left_out = left_out

    def stages(self) -> Any:
        return [stage for stage, _ in self.calls if stage not in self.left_out]

    def at(self, stage: Any) -> Any:
        return [noted for name, noted in self.calls if name == stage]


def _stage(name: Any) -> Any:
    def note(
        self: Any, runner: Any, batch_idx: Any = None, data_batch: Any = None, outputs: Any = None, **results: Any
    ) -> None:
        self.calls.append((name, (runner.epoch, runner.iter, batch_idx)))

    return note


for _name in STAGES:
    setattr(Recorder, _name, _stage(_name))


def data(batches: Any, *, val: int = 2, test: int = 1, size: int = 4) -> Any:
    """Random points of two classes: so many batches a split."""
    generator = torch.Generator().manual_seed(0)
    counts = {"train": batches, "val": val, "test": test}
    sources = {
        split: (torch.randn(size * count, 2, generator=generator), torch.arange(size * count) % 2)
        for split, count in counts.items()
        if count
    }
    return ArrayData(sources, {}, batch_size=size, eval_batch_size=size)


def runner(loop: Any, hooks: Any, *, batches: int = 3, work_dir: Any = None, **more: Any) -> Any:
    return Runner(
        MLP(in_features=2, num_classes=2, hidden=[4]),
        data(batches, **more),
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        hooks=hooks,
        metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        loop=loop,
        device="cpu",
        work_dir=work_dir,
    )


VALIDATION = [
    "before_val",
    "before_val_epoch",
    *["before_val_iter", "after_val_iter"] * 2,
    "after_val_epoch",
    "after_val",
]
ITERATION = ["before_train_iter", "after_train_iter"]


def test_the_order_of_the_epoch_loop(tmp_path: Path) -> None:
    recorder = Recorder()
    hooks = {"recorder": recorder, "checkpoint": Checkpoint()}
    runner(EpochBasedTrainLoop(2), hooks, batches=2, work_dir=tmp_path).train()
    checkpointed = [*VALIDATION[:-1], "before_save_checkpoint", VALIDATION[-1]]  # VERY_LOW comes before LOWEST
    epoch = ["before_train_epoch", *ITERATION * 2, "after_train_epoch", *checkpointed]
    assert recorder.stages() == ["before_run", "before_train", *epoch * 2, "after_train", "after_run"]


def test_the_order_of_the_iteration_loop() -> None:
    recorder = Recorder()
    runner(IterBasedTrainLoop(3, val_interval=2), {"recorder": recorder}, batches=2).train()
    first = ["before_train_epoch", *ITERATION * 2, *VALIDATION, "after_train_epoch"]
    second = ["before_train_epoch", *ITERATION, *VALIDATION]  # cut short: it has no end
    assert recorder.stages() == ["before_run", "before_train", *first, *second, "after_train", "after_run"]


def test_the_order_of_validation_and_test() -> None:
    recorder = Recorder()
    made = runner(EpochBasedTrainLoop(1), {"recorder": recorder})
    with made.session():
        made.val()
        made.test()
    tested = [
        "before_test",
        "before_test_epoch",
        "before_test_iter",
        "after_test_iter",
        "after_test_epoch",
        "after_test",
    ]
    assert recorder.stages() == ["before_run", *VALIDATION, *tested, "after_run"]


def test_loading_a_checkpoint_is_a_stage_of_resuming(tmp_path: Path) -> None:
    runner(EpochBasedTrainLoop(1), {"checkpoint": Checkpoint()}, work_dir=tmp_path).train()
    recorder = Recorder()
    made = runner(EpochBasedTrainLoop(2), {"recorder": recorder}, work_dir=tmp_path)
    made.members[0].resume = True
    made.train()
    assert recorder.stages()[:3] == ["after_load_checkpoint", "before_run", "before_train"]
    assert recorder.at("after_load_checkpoint") == [(1, 3, None)]


@pytest.mark.parametrize("unit", LOOPS)
def test_what_hooks_count(unit: Any) -> None:
    """Epochs and iterations that are finished; a batch's number is that within its epoch."""
    recorder = Recorder()
    runner(LOOPS[unit](2 if unit == "epoch" else 6, val_interval=1), {"recorder": recorder}).train()
    assert recorder.at("before_train_iter") == [(i // 3, i, i % 3) for i in range(6)]
    assert recorder.at("after_train_iter") == [(i // 3, i + 1, i % 3) for i in range(6)]
    assert recorder.at("before_train_epoch") == [(0, 0, None), (1, 3, None)]
    assert recorder.at("after_train_epoch") == [(1, 3, None), (2, 6, None)]
    assert [batch for _, _, batch in recorder.at("after_val_iter")][:4] == [0, 1, 0, 1]


@settings(max_examples=60)
@given(
    unit=st.sampled_from(sorted(LOOPS)),
    length=st.integers(1, 9),
    begin=st.integers(1, 12),
    interval=st.integers(1, 12),
    batches=st.integers(1, 4),
)
def test_when_validation_runs(unit: Any, length: int, begin: int, interval: int, batches: int) -> None:
    recorder = Recorder()
    made = runner(LOOPS[unit](length, val_begin=begin, val_interval=interval), {"recorder": recorder}, batches=batches)
    made.train()
    expected = []
    for count in range(1, length + 1):  # the reference: two rules
        if (count >= begin and count % interval == 0) or count == length:
            expected.append(count)
    place = 0 if unit == "epoch" else 1
    assert [counts[place] for counts in recorder.at("before_val")] == expected
    assert made.iter == length * (batches if unit == "epoch" else 1)
    assert made.epoch == (length if unit == "epoch" else length // batches)
    assert len(recorder.at("before_train_iter")) == made.iter


@settings(max_examples=40)
@given(
    unit=st.sampled_from(sorted(LOOPS)),
    length=st.integers(1, 12),
    interval=st.integers(1, 5),
    milestones=st.lists(st.integers(1, 12), max_size=3, unique=True),
    later=st.lists(st.integers(1, 4), min_size=3, max_size=3),
)
def test_the_interval_changes_at_milestones(unit: Any, length: int, interval: int, milestones: Any, later: Any) -> None:
    recorder = Recorder()
    pairs = list(zip(sorted(milestones), later, strict=False))
    loop = LOOPS[unit](length, val_interval=interval, dynamic_intervals=pairs)
    runner(loop, {"recorder": recorder}, batches=2).train()
    expected, present = [], interval
    for count in range(1, length + 1):
        present = dict(pairs).get(count, present)
        if count % present == 0 or count == length:
            expected.append(count)
    place = 0 if unit == "epoch" else 1
    assert [counts[place] for counts in recorder.at("before_val")] == expected


@pytest.mark.parametrize("given", [[3], [[3]], [[3, 0]], [[5, 1], [3, 1]], [[3, 1], [3, 2]], 3, [[1.5, 1]]])
def test_milestones_are_pairs_in_order(given: Any) -> None:
    with pytest.raises(ConfigError, match="dynamic_intervals"):
        EpochBasedTrainLoop(3, dynamic_intervals=given)


@settings(max_examples=20)
@given(iterations=st.integers(1, 11), batches=st.integers(1, 5))
def test_an_endless_loader_begins_anew_in_another_order(iterations: int, batches: int) -> None:
    seen = []

    class Batches(Hook):
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
            seen.append(data_batch[0])

    runner(IterBasedTrainLoop(iterations, val_interval=3), {"batches": Batches()}, batches=batches).train()
    loader = data(batches).loader("train", seed=0, device=CPU)
    served = [x for epoch in range(iterations) for x, _ in loader.batches(epoch)][:iterations]
    assert all(torch.equal(x, expected) for x, expected in zip(seen, served, strict=True))


@pytest.mark.parametrize("unit", LOOPS)
def test_without_a_validation_split(unit: Any) -> None:
    recorder = Recorder()
    made = runner(LOOPS[unit](4), {"recorder": recorder}, val=0)
    made.train()
    assert not recorder.at("before_val")
    assert (unit, made.iter) in {("epoch", 12), ("iter", 4)}


def test_training_and_evaluation_modes() -> None:
    modes = []

    class Modes(Hook):
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
            modes.append(("train", runner.model.training, torch.is_grad_enabled()))

        def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            modes.append(("val", runner.model.training, torch.is_grad_enabled()))

    for loop in (EpochBasedTrainLoop(2), IterBasedTrainLoop(5, val_interval=1)):
        runner(loop, {"modes": Modes()}).train()
    assert set(modes) == {("train", True, True), ("val", False, False)}


class StopAt(Hook):
    """Ends the training, from within an iteration or a validation."""

    def __init__(self, iteration: Any, *, in_val: bool = False, interrupt: bool = False) -> None:
        self.iteration = iteration
        self.in_val = in_val
        self.interrupt = interrupt

    def _end(self, runner: Runner) -> None:
        if runner.iter == self.iteration:
            if self.interrupt:
                runner.interrupt()
            else:
                runner.members[0].stop("enough")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if not self.in_val:
            self._end(runner)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if self.in_val:
            self._end(runner)


@pytest.mark.parametrize("unit", LOOPS)
@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_that_is_ended_within_an_epoch(unit: Any, interrupt: bool, at: int) -> None:
    recorder = Recorder()
    hooks = {"recorder": recorder, "stop": StopAt(at, interrupt=interrupt)}
    made = runner(LOOPS[unit](8, val_interval=2), hooks)
    made.train()
    assert made.iter == at
    assert recorder.stages()[-3:] == ["after_train_iter", "after_train", "after_run"], "and not validated"
    assert made.epoch == (at - 1) // 3, "an epoch counts once it is through"


@pytest.mark.parametrize("unit", LOOPS)
def test_a_run_that_is_ended_in_a_validation(unit: Any) -> None:
    """A member that stops is validated to the end; an interruption leaves the validation for later."""
    for interrupt, validated in ((False, 1), (True, 0)):
        recorder = Recorder()
        hooks = {"recorder": recorder, "stop": StopAt(3, in_val=True, interrupt=interrupt)}
        made = runner(LOOPS[unit](9, val_interval=1 if unit == "epoch" else 3), hooks)
        made.train()
        assert made.iter == 3
        assert len(recorder.at("after_val")) == validated
        assert made.train_loop.val_due is (not validated)
        assert recorder.stages()[-2:] == ["after_train", "after_run"]


def test_after_run_is_called_however_the_run_ended() -> None:
    class Broken(Hook):
        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> Any:
            raise LookupError("in a hook")

    recorder = Recorder()
    with pytest.raises(LookupError):
        runner(EpochBasedTrainLoop(2), {"recorder": recorder, "broken": Broken()}).train()
    assert recorder.stages()[-2:] == ["before_train_iter", "after_run"]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda value: EpochBasedTrainLoop(value), "max_epochs"),
        (lambda value: IterBasedTrainLoop(value), "max_iters"),
        (lambda value: EpochBasedTrainLoop(3, val_begin=value), "val_begin"),
        (lambda value: IterBasedTrainLoop(3, val_interval=value), "val_interval"),
    ],
    ids=["max_epochs", "max_iters", "val_begin", "val_interval"],
)
def test_lengths_are_whole_numbers(make: Any, key: str, value: bool | float | str | None) -> None:
    with pytest.raises(ConfigError) as error:
        make(value)
    assert str(error.value) == f"{key}: {value!r} is invalid. Expected an integer of at least 1."


TRAINING = [
    "before_run",
    "before_train",
    "before_train_epoch",
    "before_train_iter",
    "after_train_iter",
    "before_val",
    "before_val_epoch",
    "before_val_iter",
    "after_val_iter",
    "after_val_epoch",
    "after_val",
    "after_train_epoch",
    "before_val_loss",
    "before_val_loss_iter",
    "after_val_loss_iter",
    "after_val_loss",
]


@pytest.mark.parametrize("unit", LOOPS)
@pytest.mark.parametrize("stage", TRAINING)
def test_a_member_may_stop_at_any_stage(unit: Any, stage: Any, tmp_path: Path) -> None:
    """No iteration begins after it, what is under way is finished, and a resumed run trains no more."""

    class Stop(Hook):
        """The second time that the stage comes, where it comes again."""

        priority = "HIGHEST"
        count = 0

    def stop(self: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.count += 1
        if self.count == (1 if stage in ("before_run", "before_train") else 2):
            self.at = runner.iter
            runner.members[0].stop("enough")

    setattr(Stop, stage, stop)

    def make(hooks: Any, **more: Any) -> Any:
        loop = LOOPS[unit](4 if unit == "epoch" else 8, val_interval=1, workflow=[["val", 1], ["train", 1]])
        return runner(loop, {"checkpoint": Checkpoint(), **hooks}, batches=2, work_dir=tmp_path, **more)

    recorder, hook = Recorder(), Stop()
    made = make({"stop": hook, "recorder": recorder})
    made.train()
    assert made.iter == len(recorder.at("after_train_iter")) == hook.at + (stage == "before_train_iter")  # type: ignore[attr-defined]
    assert len(recorder.at("after_val_iter")) == 2 * len(recorder.at("after_val")), "validated to the end"
    assert len(recorder.at("before_val_loss")) == len(recorder.at("after_val_loss"))
    assert recorder.stages()[-2:] == ["after_train", "after_run"]
    if not any((tmp_path / "checkpoints").glob("*.pt")):
        return  # it stopped before there was anything to save
    again = make({})
    again.members[0].resume = True
    again.train()
    assert (again.iter, again.members[0].stop_reason) == (made.iter, "enough")
