from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook, Norms
from trainyard.hooks.norms import _grouped
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop


class ByHand(Hook):
    """The norms before each iteration's update, computed in another way: the gradients of the mean loss of a group."""

    priority = "LOWEST"

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = accumulate
        self.batches: list[Any] = []
        self.norms: dict[Any, Any] = {}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        self.batches.append(data_batch)
        losses = [runner.model.train_step(batch)["loss"] for batch in self.batches]
        weights = dict(runner.model.named_parameters())
        grads = torch.autograd.grad(sum(losses) / len(losses), list(weights.values()))
        self.norms[runner.iter + 1] = {
            "norm/grad": torch.cat([grad.flatten() for grad in grads]).norm().item(),
            "norm/param": torch.cat([weight.flatten() for weight in weights.values()]).norm().item(),
            "norm/grad/net.1": torch.cat([grads[0].flatten(), grads[1].flatten()]).norm().item(),
        }
        if (batch_idx + 1) % self.accumulate == 0:
            self.batches = []


def recorded(points: Any, folder: Any) -> Any:
    found: dict[Any, Any] = {}
    for (name, step), value in points(folder).items():
        if name.startswith("norm/"):
            found.setdefault(step, {})[name] = value
    return found


def test_they_are_those_of_the_whole_gradient(make: Any, points: Any, tmp_path: Path) -> None:
    by_hand = ByHand()
    make({"norms": Norms(4), "by_hand": by_hand}, work_dir=tmp_path).train()
    found = recorded(points, tmp_path)
    assert list(found) == [4, 8, 12, 16]
    for step, values in found.items():
        assert values == pytest.approx({name: by_hand.norms[step][name] for name in ("norm/grad", "norm/param")})


def test_clipping_comes_after(make: Any, points: Any, tmp_path: Path) -> None:
    by_hand = ByHand()
    make({"norms": Norms(5), "by_hand": by_hand}, work_dir=tmp_path, clip_grad_norm=1e-3).train()
    for step, values in recorded(points, tmp_path).items():
        assert values["norm/grad"] == pytest.approx(by_hand.norms[step]["norm/grad"])
        assert values["norm/grad"] > 1e-2


@pytest.mark.parametrize(("accumulate", "interval", "steps"), [(3, 3, [3, 6, 9, 12, 15, 18]), (4, 5, [6, 10, 16])])
def test_accumulated_gradients_are_taken_with_the_step(
    make: Any, points: Any, tmp_path: Path, accumulate: int, interval: int, steps: Any
) -> None:
    by_hand = ByHand(accumulate)
    hooks = {"norms": Norms(interval, by_module=True), "by_hand": by_hand}
    make(hooks, work_dir=tmp_path, accumulate=accumulate).train()
    found = recorded(points, tmp_path)
    assert list(found) == steps
    if accumulate == 3:
        for step, values in found.items():
            for name, value in by_hand.norms[step].items():
                assert values[name] == pytest.approx(value, rel=1e-5)


def test_by_module(make: Any, points: Any, tmp_path: Path) -> None:
    make({"norms": Norms(6, by_module=True)}, work_dir=tmp_path).train()
    for values in recorded(points, tmp_path).values():
        assert set(values) == {
            f"norm/{kind}{module}" for kind in ("grad", "param") for module in ("", "/net.1", "/net.3")
        }
        parts = values["norm/grad/net.1"], values["norm/grad/net.3"]
        assert values["norm/grad"] == pytest.approx(sum(part**2 for part in parts) ** 0.5)


def test_in_half_precision_they_are_unscaled(make: Any, points: Any, tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        make({"norms": Norms(1)}, loop=IterBasedTrainLoop(1), work_dir=folder, precision=precision).train()
        found[precision] = recorded(points, folder)[1]["norm/grad"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.05)


def test_a_resumed_run_records_what_was_due(make: Any, points: Any, tmp_path: Path, interrupt_at: Any) -> None:
    def run(folder: Any, at: Any, resume: bool = False) -> Any:
        hooks = {"norms": Norms(5), "checkpoint": Checkpoint()} | ({"stop": interrupt_at(at)} if at else {})
        loop = EpochBasedTrainLoop(2)
        make(hooks, loop=loop, work_dir=folder, accumulate=4, resume=resume).train()
        return recorded(points, folder)

    run(tmp_path / "resumed", 5)
    assert run(tmp_path / "resumed", None, resume=True) == run(tmp_path / "whole", None)


def test_it_changes_nothing_of_the_training(make: Any) -> None:
    measured, plain = make({"norms": Norms(1)}), make({})
    results = measured.train()[0]
    assert {name: value for name, value in results.items() if "norm/" not in name} == plain.train()[0]
    assert type(measured.step.clip) is type(plain.step.clip)


names = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), min_size=1, max_size=8, unique=True
)


@given(names)
def test_modules_share_out_all_weights(names: Any) -> None:
    weights = {name: torch.tensor(index) for index, name in enumerate(names)}
    modules = _grouped(weights)
    assert sorted(int(weight) for module in modules.values() for weight in module) == list(range(len(names)))
    paths = {tuple(name.split(".")[:-1]) for name in names}
    assert len(modules) > 1 or len(paths) == 1 or min(map(len, paths)) == 0 or () not in paths


@pytest.mark.parametrize(("key", "given_"), [("interval", 0), ("interval", 1.5), ("by_module", "yes")])
def test_settings_that_cannot_be(key: str, given_: float | str) -> None:
    with pytest.raises(ConfigError) as error:
        Norms(**{key: given_})
    assert error.value.key == key


def test_several_optimizers_are_measured_together(make: Any, points: Any, tmp_path: Path) -> None:
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01}
    make(
        {"norms": Norms(6, by_module=True)},
        model={"_target_": "trainyard.models.gan.GAN", "in_features": 2, "num_classes": 2, "hidden": [8]},
        optim={"discriminator": adam, "generator": adam},
        metrics={"distance": {"_target_": "trainyard.metrics.energy_distance.EnergyDistance"}},
        objective="val/distance",
        work_dir=tmp_path,
        clip_grad_norm=0.01,
    ).train()
    found = recorded(points, tmp_path)
    assert list(found) == [6, 12, 18]
    for values in found.values():
        for kind in ("grad", "param"):
            parts = [values[f"norm/{kind}/{net}"] for net in ("discriminator", "generator")]
            assert min(parts) > 0.01
            assert values[f"norm/{kind}"] == pytest.approx(sum(part**2 for part in parts) ** 0.5)
