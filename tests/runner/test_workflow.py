"""Turns of training and of validation by losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainyard.data import ArrayData
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Checkpoint, Hook, Logger
from trainyard.models import MLP, BaseModel
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint
from trainyard.runner.workflow import Workflow
from trainyard.track import read

LOOPS = {"epoch": EpochBasedTrainLoop, "iter": IterBasedTrainLoop}


class Turns(Hook):
    """Notes each training iteration and each batch of a turn of validation."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.seen: list[Any] = []
        self.losses: list[Any] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.calls.append("t")

    def before_val_loss(self, runner: Runner) -> None:
        assert not runner.model.training
        self.calls.append("(")

    def before_val_loss_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        assert not torch.is_grad_enabled()
        self.seen.append(data_batch[0])

    def after_val_loss_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.calls.append("v")

    def after_val_loss(self, runner: Runner, losses: Any) -> None:
        self.calls.append(")")
        self.losses.append(losses)

    def before_val(self, runner: Runner) -> None:
        self.calls.append("V")


def data(train: int = 3, val: int = 2, size: int = 4, more: int = 0) -> Any:
    generator = torch.Generator().manual_seed(0)
    counts = {"train": size * train, "val": size * val + more}
    sources = {
        split: (torch.randn(count, 2, generator=generator), torch.arange(count) % 2)
        for split, count in counts.items()
        if count
    }
    return ArrayData(sources, {"in_features": 2, "num_classes": 2}, batch_size=size, eval_batch_size=size)


def runner(loop: Any, hooks: Any = None, **more: Any) -> Any:
    settings = {
        "model": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [4]},
        "data": data(),
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "hooks": hooks or {},
        "metrics": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "loop": loop,
        "device": "cpu",
    }
    return Runner(**(settings | more))


def as_mmcv(workflow: Any, length: Any) -> Any:
    """The reference: the loop of MMCV's runners, as turns of validation by the count of what was trained."""
    turns: dict[int, int] = {}
    count = 0
    while count < length:
        for mode, units in workflow:
            for _ in range(units):
                if mode == "val":
                    turns[count] = turns.get(count, 0) + 1
                elif count < length:
                    count += 1
    return turns


WORKFLOWS = st.lists(st.tuples(st.sampled_from(["train", "val"]), st.integers(1, 3)), min_size=1, max_size=4).filter(
    lambda entries: any(mode == "train" for mode, _ in entries)
)


@given(WORKFLOWS, st.integers(1, 12))
def test_turns_come_where_mmcv_has_them(workflow: Any, length: int) -> None:
    turns, made = as_mmcv(workflow, length), Workflow(workflow)
    assert {count: made.turn(count, length) for count in range(length + 1) if made.turn(count, length)} == turns
    for count in range(length + 1):
        if made.turn(count, length):
            assert made.before(count) == sum(units for at, units in turns.items() if at < count)
    assert bool(made) is any(mode == "val" for mode, _ in workflow)


@settings(max_examples=25)
@given(unit=st.sampled_from(sorted(LOOPS)), workflow=WORKFLOWS, length=st.integers(1, 5))
def test_both_loops_follow_it(unit: Any, workflow: Any, length: int) -> None:
    """Validation for metrics goes on beside it, and comes first where both are due."""
    hook = Turns()
    made = runner(LOOPS[unit](length, val_interval=100, workflow=workflow), {"turns": hook})
    made.train()
    turns, passes = as_mmcv(workflow, length), 2 if unit == "epoch" else 1  # two batches are a pass
    expected = []
    for count in range(length + 1):
        expected += ["t"] * (3 if unit == "epoch" else 1) * (count > 0)
        expected += ["V"] * (count == length)
        expected += ["(", *["v"] * turns[count] * passes, ")"] if count in turns else []
    assert hook.calls == expected
    assert (made.iter, made.epoch) == ((3 * length, length) if unit == "epoch" else (length, length // 3))


@pytest.mark.parametrize("workflow", [[["train", 2], ["val", 1]], [["val", 1], ["train", 1]]])
@pytest.mark.parametrize("unit", LOOPS)
def test_it_changes_nothing_of_the_training(unit: Any, workflow: Any) -> None:
    alone = runner(LOOPS[unit](4))
    turning = runner(LOOPS[unit](4, workflow=workflow))
    for each in (alone, turning):
        each.train()
    assert all(map(torch.equal, alone.model.parameters(), turning.model.parameters()))


def test_the_mean_over_samples_of_the_models_own_losses(tmp_path: Path) -> None:
    """A last batch of one sample counts for one; dropout is off; the weights are the raw ones beside an EMA."""
    loop = EpochBasedTrainLoop(1, workflow=[["train", 1], ["val", 1]])
    hooks = {"ema": EMA(0.9), "logger": Logger(), "turns": Turns()}
    model = MLP(in_features=2, num_classes=2, hidden=[4], dropout=0.5)
    made = runner(loop, hooks, model=model, data=data(more=1), work_dir=tmp_path)
    (metrics,) = made.train()
    x, y = made.data.sources["val"]
    model.eval()
    expected = nn.functional.cross_entropy(model(x, mode="tensor"), y).item()
    assert metrics["val_loss/loss"] == pytest.approx(expected, abs=1e-6)
    assert metrics["val_loss/loss"] != pytest.approx(metrics["val/loss"], abs=1e-6), "which is the average's"
    assert hooks["turns"].losses == [{"val_loss/loss": metrics["val_loss/loss"]}]  # type: ignore[attr-defined]
    journaled = [record["values"] for record, _ in read(tmp_path / "metrics.jsonl") if record["kind"] == "metrics"]
    assert {"val_loss/loss": metrics["val_loss/loss"]} in journaled


class TwoLosses(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Any, y: Any, mode: str = "tensor") -> Any:
        logits = self.layer(x)
        if mode != "loss":
            return logits
        return {
            "loss_class": nn.functional.cross_entropy(logits, y),
            "loss_size": logits.square().mean(),
            "top": x[0, 0],
        }


def test_every_loss_has_its_name() -> None:
    (metrics,) = runner(EpochBasedTrainLoop(1, workflow=[["train", 1], ["val", 1]]), model=TwoLosses()).train()
    found = {key: value for key, value in metrics.items() if key.startswith("val_loss/")}
    assert found.keys() == {"val_loss/loss", "val_loss/loss_class", "val_loss/loss_size", "val_loss/top"}
    assert found["val_loss/loss"] == pytest.approx(found["val_loss/loss_class"] + found["val_loss/loss_size"])


def test_batches_of_an_iteration_loop_go_on_where_the_last_turn_ended() -> None:
    hook = Turns()
    made = runner(IterBasedTrainLoop(3, workflow=[["train", 1], ["val", 3]]), {"turns": hook}, data=data(val=4))
    made.train()
    x = made.data.sources["val"][0]
    expected = [x[4 * (index % 4) : 4 * (index % 4) + 4] for index in range(9)]
    assert all(map(torch.equal, hook.seen, expected))
    assert len(hook.seen) == 9


@pytest.mark.parametrize("unit", LOOPS)
@pytest.mark.parametrize("where", ["training", "turn", "end of turn"])
def test_interrupted_and_resumed_to_the_bit(unit: Any, where: str, tmp_path: Path) -> None:
    """Wherever the run ends, nothing of the workflow is left out, and nothing told twice."""

    class Interrupt(Hook):
        priority = "LOWEST"

        def __init__(self) -> None:
            self.turns = 0

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if where == "training" and runner.iter == 7:
                runner.interrupt()

        def after_val_loss_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if where == "turn" and self.turns == 2:
                runner.interrupt()

        def after_val_loss(self, runner: Runner, losses: Any) -> None:
            self.turns += 1
            if where == "end of turn" and self.turns == 2:
                runner.interrupt()

    length, workflow = 5 if unit == "epoch" else 12, [["val", 1], ["train", 2], ["val", 2]]

    def make(folder: Any, hooks: Any, **more: Any) -> Any:
        loop = LOOPS[unit](length, val_interval=2, workflow=workflow)
        hooks = {"logger": Logger(interval=2), "checkpoint": Checkpoint(), **hooks}
        model = MLP(in_features=2, num_classes=2, hidden=[4], dropout=0.3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        return runner(loop, hooks, model=model, work_dir=tmp_path / folder, **more)

    make("whole", {}).train()
    interrupt, turns = Interrupt(), Turns()
    first, second = make("parts", {"interrupt": interrupt}), make("parts", {"turns": turns}, resume=True)
    first.train()
    assert first.interrupted
    second.train()
    again = interrupt.turns + turns.calls.count(")") - len(as_mmcv(workflow, length))
    assert again == (where == "end of turn"), "the last checkpoint is from before that turn"
    states = []
    for folder in ("whole", "parts"):
        last = checkpoint.read_last(tmp_path / folder / "checkpoints")[-1]
        states.append(checkpoint.load(tmp_path / folder / "checkpoints" / last))
    assert all(torch.equal(value, states[1]["model"][key]) for key, value in states[0]["model"].items())
    assert states[0]["loop"] == states[1]["loop"]
    points = [
        [(key, r["step"], value) for r, _ in read(tmp_path / folder / "metrics.jsonl") if r["kind"] == "metrics"
         for key, value in r["values"].items() if "time" not in key]
        for folder in ("whole", "parts")
    ]  # fmt: skip
    assert sorted(points[0]) == sorted(points[1]), "and no point twice"


@pytest.mark.parametrize("seeds", [[0, 0], [0, 1]], ids=["one order", "orders of their own"])
def test_a_fused_group(seeds: Any, tmp_path: Path) -> None:
    """Each member's losses are those of its own run, by number and by name."""

    def config(k: Any, folder: Any) -> Any:
        return {
            "model": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [4]},
            "data": {"_target_": "trainyard.data.Rings", "num_samples": 100, "batch_size": 16},
            "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1 * (k + 1)},
            "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
            "hook": {"logger": {"_target_": "trainyard.hooks.Logger"}},
            "loop": {
                "_target_": "trainyard.runner.EpochBasedTrainLoop",
                "max_epochs": 3,
                "workflow": [["train", 2], ["val", 1]],
            },
            "seed": seeds[k],
            "device": "cpu",
            "work_dir": str(tmp_path / folder / str(k)),
        }

    fused = FusedRunner([config(k, "fused") for k in range(2)])
    together = fused.train()
    alone = [Runner.from_cfg(config(k, "alone")).train()[0] for k in range(2)]
    for own, of_group in zip(alone, together, strict=True):
        assert of_group["val_loss/loss"] == pytest.approx(own["val_loss/loss"], abs=1e-5)
    assert together[0]["val_loss/loss"] != together[1]["val_loss/loss"]


@pytest.mark.parametrize(
    ("workflow", "told"),
    [
        ([["trian", 1]], "workflow: 'trian' is invalid. Expected one of train, val. Did you mean 'train'?"),
        ([["val", 1]], "at least one [train, n]"),
        ([["train", 0]], "pairs [train, n]"),
        ([["train", 1.5]], "pairs [train, n]"),
        ([["train", True]], "pairs [train, n]"),
        ([["train"]], "pairs [train, n]"),
        (["train", 1], "pairs [train, n]"),
        ("train", "pairs [train, n]"),
        ([], "at least one [train, n]"),
    ],
)
def test_what_is_no_workflow(workflow: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        EpochBasedTrainLoop(3, workflow=workflow)
    assert told in str(error.value)


def test_it_needs_data_and_one_optimizer(tmp_path: Path) -> None:
    loop = EpochBasedTrainLoop(2, workflow=[["train", 1], ["val", 1]])
    with pytest.raises(ConfigError, match=r"loop\.workflow: .* because the data has no validation"):
        runner(loop, data=data(val=0), work_dir=tmp_path / "run").train()
    gan = {"_target_": "trainyard.models.gan.GAN", "in_features": 2, "num_classes": 2, "hidden": [4]}
    optim = {name: {"_target_": "torch.optim.Adam", "_partial_": True} for name in ("discriminator", "generator")}
    with pytest.raises(ConfigError, match=r"loop\.workflow: .* several optimizers"):
        runner(loop, model=gan, optim=optim, metrics={}, work_dir=tmp_path / "run").train()
    assert not (tmp_path / "run").exists()
