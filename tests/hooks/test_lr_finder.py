import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.hooks import EMA, Checkpoint, Hook, Logger, LRFinder
from trainyard.hooks.lr_finder import Curve, _without_suggestion
from trainyard.runner import IterBasedTrainLoop, checkpoint
from trainyard.track import read

MLP = {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [16], "batch_norm": True}


def sgd(lr: float = 0.1) -> Any:
    return {"_target_": "torch.optim.SGD", "_partial_": True, "lr": lr, "momentum": 0.9}


class Count(Hook):
    """How many iterations there were."""

    def __init__(self) -> None:
        self.iterations = 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.iterations += 1


def test_it_suggests_a_rate_writes_the_curve_and_ends_the_run(make: Any, tmp_path: Path) -> None:
    count = Count()
    hooks = {"finder": LRFinder(), "count": count, "checkpoint": Checkpoint(), "logger": Logger()}
    runner = make(hooks, optim=sgd(), work_dir=tmp_path)
    runner.train()
    (member,) = runner.members
    curve = json.loads((tmp_path / "lr_finder.json").read_text())
    assert 1e-2 < curve["suggestion"] < 1
    assert len(curve["lr"]) == len(curve["loss"]) == len(curve["smoothed"]) <= 100
    assert (curve["lr"][0], curve["lr"][1] / curve["lr"][0]) == pytest.approx((1e-6, 1e7 ** (1 / 99)))
    assert (tmp_path / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
    assert count.iterations == 0, "the run has not begun"
    assert not list(tmp_path.glob("checkpoints/*.pt"))
    assert member.stop_reason == f"learning rate {curve['suggestion']:.2e} suggested"
    assert not member.failed
    records = [record for record, _ in read(tmp_path / "metrics.jsonl")]
    values = [record["values"] for record in records if record["kind"] == "metrics"]
    assert values == [{"lr_finder/suggestion": curve["suggestion"]}]
    assert [r["path"] for r in records if r["kind"] == "artifact"] == ["lr_finder.json", "lr_finder.png"]
    assert records[-1]["status"] == "FINISHED"


def test_what_it_suggests_trains_better_than_what_it_began_with(make: Any) -> None:
    finder = LRFinder()
    make({"finder": finder}, optim=sgd()).train()
    (found,) = [curve.suggestion for curve in finder.curves]
    losses = {lr: make({}, optim=sgd(lr)).train()[0]["val/loss"] for lr in (1e-6, found, 100.0)}
    assert min(losses, key=losses.get) == found


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_run_is_as_it_was(make: Any, accumulate: int) -> None:
    def prepared(hooks: Any) -> Any:
        model = MLP | {"dropout": 0.5}
        runner = make(hooks, model=model, optim=sgd(), accumulate=accumulate)
        runner.prepare()
        return runner

    found, plain = prepared({"finder": LRFinder(), "ema": EMA()}), prepared({})
    expected, generator = plain.checkpoint()[0], torch.get_rng_state()
    found.train()
    assert torch.equal(torch.get_rng_state(), generator)
    state = found.checkpoint()[0]
    for name, tensor in expected["model"].items():
        assert torch.equal(state["model"][name], tensor), name
        assert torch.equal(found.eval_model.state_dict()[name], tensor), name
    assert (state["optimizer"], state["step"]) == (expected["optimizer"], expected["step"])


def test_a_trained_model_can_be_searched(make: Any, tmp_path: Path) -> None:
    make({"checkpoint": Checkpoint()}, loop=IterBasedTrainLoop(18), optim=sgd(), work_dir=tmp_path / "a").train()
    file, state = checkpoint.newest(tmp_path / "a" / "checkpoints")  # type: ignore[misc]
    runner = make({"finder": LRFinder()}, optim=sgd(), load_from=file, work_dir=tmp_path / "b")
    runner.train()
    assert all(torch.equal(own, state["model"][name]) for name, own in runner.model.state_dict().items())
    resumed = make({"finder": LRFinder()}, epochs=9, optim=sgd(), resume=file)
    resumed.train()
    own = resumed.checkpoint()[0]["optimizer"]
    for index, entry in state["optimizer"]["state"].items():
        assert torch.equal(own["state"][index]["momentum_buffer"], entry["momentum_buffer"])
    assert own["param_groups"] == state["optimizer"]["param_groups"]


def test_groups_keep_their_ratio(make: Any) -> None:
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def optim(parameters: Any) -> Any:
        first, *rest = parameters
        return Spy([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.02}])

    runner = make({"finder": LRFinder(iterations=10)}, optim=optim)
    runner.train()
    assert [first / second for first, second in rates] == pytest.approx([5.0] * len(rates))
    assert [group["lr"] for group in runner.optimizer.param_groups] == [0.1, 0.02]


def test_without_a_directory_it_writes_nothing(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finder = LRFinder()
    make({"finder": finder}, optim=sgd()).train()
    assert finder.curves[0].suggestion is not None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([math.nan], "is not finite before the first update of the weights"),
        ([1.0, math.inf], "is not finite after an update with the learning rate 1.00e-03"),
        ([1.0, 2.0, 9.0], "no learning rate from 1.00e-03 to 3.00e-03 reduces the loss"),
    ],
)
def test_why_there_is_no_suggestion(losses: list[float], told: str) -> None:
    curve = Curve(0.0, 4.0)
    for index, loss in enumerate(losses):
        curve.add(1e-3 * (index + 1), loss)
    assert curve.suggestion is None
    assert told in _without_suggestion(curve)


def test_a_loss_that_does_not_fall_suggests_nothing(make: Any, tmp_path: Path) -> None:
    runner = make({"finder": LRFinder(start=1e20, end=1e30)}, optim=sgd(), work_dir=tmp_path)
    runner.train()
    assert runner.members[0].stop_reason == "no learning rate from 1.00e+20 to 1.26e+20 reduces the loss"
    assert json.loads((tmp_path / "lr_finder.json").read_text())["suggestion"] is None


@given(center=st.floats(-4, -1), slope=st.floats(1, 3))
def test_the_steepest_place_of_a_known_curve_is_found(center: float, slope: float) -> None:
    curve = Curve(smoothing=0.0, diverge=4.0)
    for exponent in np.linspace(-6, 1, 200):
        curve.add(10**exponent, 2 - math.tanh(slope * (exponent - center)))
    assert math.log10(curve.suggestion) == pytest.approx(center, abs=0.1)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40), st.floats(0, 0.99))
def test_a_curve_is_finite_whatever_the_losses(losses: Any, smoothing: float) -> None:
    curve = Curve(smoothing, diverge=4.0)
    for index, loss in enumerate(losses):
        curve.add(10.0 ** (index - 20), loss)
    assert all(map(math.isfinite, curve.loss))
    assert curve.suggestion is None or curve.suggestion in curve.lr
    ended = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    assert len(curve.lr) <= ended


@pytest.mark.parametrize(
    ("key", "given_"),
    [
        ("start", 0),
        ("start", "low"),
        ("diverge", None),
        ("end", 1e-9),
        ("iterations", 5),
        ("iterations", 50.0),
        ("smoothing", 1),
        ("diverge", 1),
    ],
)
def test_settings_that_cannot_be(key: str, given_: float | str | None) -> None:
    with pytest.raises(ConfigError) as error:
        LRFinder(**{key: given_})
    assert error.value.key == key
