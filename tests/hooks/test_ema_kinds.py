"""Other averages than the exponential one, when they are updated, and the weights evaluated beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel

from trainyard.errors import ConfigError
from trainyard.hooks import EMA, Checkpoint, Hook, Logger
from trainyard.models import MLP
from trainyard.runner import IterBasedTrainLoop, checkpoint

BATCHES = 6


class States(Hook):
    """The model's whole state after each iteration."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.all.append({name: tensor.clone() for name, tensor in runner.model.state_dict().items()})


def mlp() -> Any:
    return MLP(in_features=2, num_classes=2, hidden=[8], batch_norm=True)


def reference(states: Any, share: Any, interval: int = 1) -> Any:
    """MMEngine's BaseAveragedModel: `steps` counts the calls, and every `interval`-th one updates."""
    average = {name: tensor.double() for name, tensor in states[0].items()}
    for steps, state in enumerate(states[1:], 1):
        if steps % interval == 0:
            for name, old in average.items():
                average[name] = old + share(steps) * (state[name].double() - old)
    return average


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["exponential", "swa", "annealing"]),
    interval=st.integers(1, 5),
    begin=st.integers(1, 15),
    momentum=st.floats(0.01, 1),
    gamma=st.floats(0.5, 50),
    update_buffers=st.booleans(),
)
def test_averages_are_those_of_mmengine(
    make: Any, kind: str, interval: int, begin: int, momentum: float, gamma: float, update_buffers: bool
) -> None:
    share = {
        "exponential": lambda steps: momentum,
        "swa": lambda steps: 1 / (steps // interval + 1),
        "annealing": lambda steps: max(momentum, gamma / (gamma + steps)),
    }[kind]
    states = States()
    hook = EMA(momentum=momentum, kind=kind, interval=interval, begin=begin, gamma=gamma, update_buffers=update_buffers)
    runner = make({"ema": hook, "states": states}, model=mlp(), loop=IterBasedTrainLoop(18, val_interval=5))
    runner.train()
    expected = reference(states.all[begin - 1 :], share, interval)
    parameters = dict(runner.model.named_parameters())
    for name, tensor in runner.eval_model.state_dict().items():
        averaged = name in parameters or (update_buffers and tensor.is_floating_point())
        if averaged:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-3, atol=1e-5)
        elif not update_buffers:
            assert torch.equal(tensor, states.all[-1][name])


@pytest.mark.parametrize(("begin", "interval"), [(1, 1), (2, 1), (2, 2), (1, 3)])
def test_by_epoch_it_is_what_torch_does_at_the_end_of_epochs(make: Any, begin: int, interval: int) -> None:
    epochs = 5
    states = States()
    hook = EMA(kind="swa", by="epoch", begin=begin, interval=interval)
    runner = make({"ema": hook, "states": states}, epochs, model=mlp())
    runner.train()
    model = mlp()
    average = AveragedModel(model)
    for epoch in range(begin, epochs + 1, interval):
        model.load_state_dict(states.all[epoch * BATCHES - 1])
        average.update_parameters(model)
    for mine, theirs in zip(runner.eval_model.parameters(), average.module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_before_it_begins_the_weights_are_evaluated_and_saved(make: Any, tmp_path: Path) -> None:
    which = []

    class Which(Hook):
        def after_val(self, runner: Any) -> None:
            which.append(runner.eval_model is runner.model)

    hooks = {"ema": EMA(begin=3), "checkpoint": Checkpoint(max_keep=None), "which": Which()}
    make(hooks, epochs=4, work_dir=tmp_path).train()
    assert which == [True, True, False, False]
    saved = [checkpoint.load(file) for file in sorted((tmp_path / "checkpoints").glob("epoch_*.pt"))]
    assert ["eval_model" in state for state in saved] == [False, False, True, True]


def test_an_average_that_never_begins_is_told(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    make({"ema": EMA(begin=4)}, epochs=3).train()
    assert "hook.ema.begin=4 is after the end of the run" in caplog.text


SETTINGS = {
    "exponential": {"decay": 0.8, "interval": 4},
    "swa": {"kind": "swa", "begin": 2, "update_buffers": True},
    "by epoch": {"kind": "swa", "by": "epoch", "begin": 2},
    "annealing": {"kind": "annealing", "gamma": 5.0, "interval": 2, "evaluate": "both"},
}


@pytest.mark.parametrize("at", [3, 6, 8, 13])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_resumed_run_has_the_same_bits(
    make: Any, points: Any, interrupt_at: Any, tmp_path: Path, kind: Any, at: int
) -> None:
    def run(folder: Any, **more: Any) -> Any:
        hooks = {"ema": EMA(**SETTINGS[kind]), "checkpoint": Checkpoint(), **more}
        model = {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "batch_norm": True}
        runner = make(hooks, model=model, work_dir=tmp_path / folder, resume=True)
        runner.train()
        return runner

    whole = run("whole")
    run("parts", stop=interrupt_at(at))
    parts = run("parts")
    for name, tensor in whole.eval_model.state_dict().items():
        assert torch.equal(parts.eval_model.state_dict()[name], tensor), name
    assert points(tmp_path / "parts") == points(tmp_path / "whole")


def test_both_are_evaluated_side_by_side(
    make: Any, points: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO", "trainyard")
    hooks = {"ema": EMA(0.9, begin=2, evaluate="both"), "logger": Logger()}
    make(hooks, model=mlp(), work_dir=tmp_path).train()
    make({"ema": EMA(0.9, begin=2)}, model=mlp(), work_dir=tmp_path / "average").train()
    make({}, model=mlp(), work_dir=tmp_path / "raw").train()
    both = {key: value for key, value in points(tmp_path).items() if key[0].startswith("val")}
    average = {key: value for key, value in points(tmp_path / "average").items() if key[0] == "val/loss"}
    raw = {("val_raw/loss", at): value for (name, at), value in points(tmp_path / "raw").items() if name == "val/loss"}
    del raw["val_raw/loss", BATCHES]  # the average has not begun there
    assert both.keys() == average.keys() | raw.keys()
    lines = [record.getMessage().split("  ")[0] for record in caplog.records]
    assert [line for line in lines if line.startswith("val")] == ["val", "val", "val_raw", "val", "val_raw"]


def test_what_is_evaluated_beside_is_the_model(make: Any, points: Any, tmp_path: Path) -> None:
    """The same seed, and a model from a config: the raw results are those of a run without an average, bit for bit."""
    make({"ema": EMA(0.9, evaluate="both")}, work_dir=tmp_path / "both").train()
    make({}, work_dir=tmp_path / "plain").train()
    both, plain = points(tmp_path / "both"), points(tmp_path / "plain")
    assert {at: value for (name, at), value in both.items() if name == "val_raw/loss"} == {
        at: value for (name, at), value in plain.items() if name == "val/loss"
    }
    assert both["val/loss", 18] != both["val_raw/loss", 18]


def test_alone_a_validation_has_one_result(make: Any) -> None:
    runner = make({"ema": EMA(0.9, evaluate="both")})
    runner.train()
    assert list(runner.val()[0]) == ["val/loss"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"momentum": 0}, "momentum: 0 is invalid. Expected a number above 0 and of at most 1"),
        ({"kind": "swag"}, "kind: 'swag' is invalid. Expected one of exponential, swa, annealing. Did you mean 'swa'?"),
        ({"by": "epochs"}, "Did you mean 'epoch'?"),
        ({"begin": 0}, "begin: 0 is invalid. Expected an integer of at least 1"),
        ({"interval": 1.5}, "interval: 1.5 is invalid"),
        ({"gamma": 0}, "gamma: 0 is invalid. Expected a number above 0"),
        ({"evaluate": "raw"}, "evaluate: 'raw' is invalid. Expected one of average, both"),
    ],
)
def test_settings_that_cannot_work(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        EMA(**settings)
    assert told in str(error.value)
