from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.hooks import EMA, Checkpoint, Hook
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, checkpoint


class Weights(Hook):
    """The weights after each iteration."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.all.append({name: tensor.clone() for name, tensor in runner.model.named_parameters()})


def by_hand(weights: Any, decay: Any) -> Any:
    average = {name: tensor.double() for name, tensor in weights[0].items()}
    for step in weights[1:]:
        average = {name: decay * old + (1 - decay) * step[name].double() for name, old in average.items()}
    return average


@settings(max_examples=10)
@given(decay=st.floats(0, 0.999), epochs=st.integers(1, 3))
def test_it_is_the_average_of_the_weights_of_every_iteration(make: Any, decay: float, epochs: int) -> None:
    weights = Weights()
    runner = make({"ema": EMA(decay), "weights": weights}, epochs)
    runner.train()
    for name, parameter in runner.eval_model.named_parameters():
        expected = by_hand(weights.all, decay)[name].float()
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)


def test_the_weights_themselves_are_trained_as_ever(make: Any) -> None:
    with_average, without = make({"ema": EMA(0.9)}), make({})
    with_average.train()
    without.train()
    for averaged, plain in zip(with_average.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(averaged, plain)


def test_the_average_is_evaluated(make: Any) -> None:
    evaluated = []

    class Which(Hook):
        def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            x, _ = data_batch
            evaluated.append([torch.equal(outputs, model(x)) for model in (runner.eval_model, runner.model.eval())])

    runner = make({"ema": EMA(0.9), "which": Which()})
    (metrics,) = runner.train()
    assert evaluated == [[True, False]] * 3
    assert runner.val()[0]["val/loss"] == metrics["val/loss"]
    assert runner.test()[0]["test/loss"] > 0


def test_buffers_are_the_models_own(make: Any) -> None:
    model = MLP(in_features=2, num_classes=2, hidden=[8], batch_norm=True)
    runner = make({"ema": EMA(0.5)}, model=model)
    runner.train()
    own = dict(runner.model.named_buffers())
    assert "net.2.running_mean" in own
    for name, buffer in runner.eval_model.named_buffers():
        assert torch.equal(buffer, own[name])


def test_a_checkpoint_holds_both(make: Any, tmp_path: Path) -> None:
    runner = make({"ema": EMA(0.9), "checkpoint": Checkpoint()}, work_dir=tmp_path)
    runner.train()
    state = checkpoint.newest(tmp_path / "checkpoints")[1]
    for key, model in (("model", runner.model), ("eval_model", runner.eval_model)):
        assert all(torch.equal(state[key][name], tensor) for name, tensor in model.state_dict().items())
    assert state["hooks"]["ema"] == {"updates": 18, "first": 1}


def test_an_average_can_join_a_resumed_run(make: Any, tmp_path: Path) -> None:
    make({"checkpoint": Checkpoint()}, epochs=1, work_dir=tmp_path).train()
    weights = Weights()
    runner = make({"ema": EMA(0.8), "weights": weights}, loop=EpochBasedTrainLoop(2), work_dir=tmp_path, resume=True)
    runner.train()
    assert len(weights.all) == 6
    for name, parameter in runner.eval_model.named_parameters():
        expected = by_hand(weights.all, 0.8)[name].float()
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [1, 1.5, -0.1, float("nan")])
def test_a_decay_that_cannot_be(decay: Any) -> None:
    with pytest.raises(ConfigError, match=r"decay: .* is invalid. Expected a number of at least 0 and below 1"):
        EMA(decay)
