"""The state of an optimizer finds its parameters by their names, and is refused where they are others."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import ArrayData
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Checkpoint, Hook, ParamSchedule
from trainyard.models import MLP, Supervised
from trainyard.models.gan import GAN
from trainyard.optim import build_several, identity
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint
from trainyard.schedules import Plateau

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9}
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01, "fused": True}
METRICS = {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}}


class Net(nn.Module):
    """Layers of the same values whatever the order in which they are registered."""

    def __init__(self, order: str = "abc", width: int = 6, tied: bool = False) -> None:
        super().__init__()
        for name in order:
            sizes = {"a": (4, width), "b": (width, 6), "c": (6, 6)}[name]
            torch.manual_seed(ord(name))
            self.add_module(name, nn.Linear(*sizes))
        if tied:
            first, second = sorted("bc", key=order.index)
            getattr(self, second).weight = getattr(self, first).weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.c(self.b(self.a(x).relu()).relu())


def data() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 4, generator=generator), torch.randint(0, 3, (48,), generator=generator)
    return {"train": DataLoader(TensorDataset(x, y), 8), "val": DataLoader(TensorDataset(x, y), 48)}


def runner(net: nn.Module, work_dir: Path | None, epochs: int = 2, **more: Any) -> Runner:
    settings = {
        "data": data(),
        "optim": SGD,
        "metrics": METRICS,
        "hooks": {"checkpoint": Checkpoint()},
        "loop": EpochBasedTrainLoop(epochs),
        "device": "cpu",
        "work_dir": work_dir,
        "resume": work_dir is not None,
    }
    return Runner(Supervised(net), **(settings | more))


def weights(runner: Runner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in runner.eval_model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


PARAMWISE = {"custom_keys": {"a.": {"lr_mult": 0.5}, "b.": {"lr_mult": 2.0}}}


@pytest.mark.parametrize("optim", [SGD, ADAM, ADAM | {"paramwise": PARAMWISE}])
@pytest.mark.parametrize("order", ["cba", "bca"])
def test_layers_registered_in_another_order(tmp_path: Path, optim: dict[str, Any], order: str) -> None:
    """With averaged weights, and a schedule that holds a number for each parameter group."""

    def run(order: str, epochs: int, work_dir: Path | None) -> Runner:
        hooks: dict[str, Hook] = {"ema": EMA(0.9), "param_schedule": ParamSchedule()}
        hooks |= {"checkpoint": Checkpoint()}
        schedule = Plateau(patience=0, threshold=10.0, factor=0.5)  # lowers at every validation but the first
        made = runner(Net(order), work_dir, epochs, optim=optim, hooks=hooks, schedule=schedule)
        made.train()
        return made

    whole = run("abc", 4, None)
    run("abc", 2, tmp_path)
    resumed = run(order, 4, tmp_path)
    assert_same(weights(resumed), weights(whole))
    rates = [
        {name: group["lr"] for group in each.optimizer.param_groups for name in _names(each, group)}
        for each in (whole, resumed)
    ]
    assert rates[0] == rates[1]


def _names(runner: Runner, group: dict[str, Any]) -> list[str]:
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    return [names[id(parameter)] for parameter in group["params"]]


def test_tied_parameters_have_several_names(tmp_path: Path) -> None:
    (whole := runner(Net("abc", tied=True), None, 4)).train()
    runner(Net("abc", tied=True), tmp_path).train()
    (resumed := runner(Net("acb", tied=True), tmp_path, 4)).train()
    assert_same(weights(resumed), weights(whole))


def test_gradients_that_wait_for_a_step(tmp_path: Path) -> None:
    loop = {"loop": IterBasedTrainLoop(8, val_interval=4)}
    hooks = {"hooks": {"checkpoint": Checkpoint(interval=1, by="iter", max_keep=None)}}
    (whole := runner(Net("abc"), tmp_path / "whole", accumulate=3, **loop, **hooks)).train()
    path = tmp_path / "whole/checkpoints/iter_00000004.pt"
    assert checkpoint.load(path)["step"]["gradients"] is not None
    (resumed := runner(Net("cab"), tmp_path / "again", accumulate=3, resume=path, **loop)).train()
    assert_same(weights(resumed), weights(whole))


def test_another_freeze_is_refused_by_both_names(tmp_path: Path) -> None:
    runner(Net(), tmp_path, freeze=["net.b"]).train()
    with pytest.raises(ConfigError) as refused:
        runner(Net(), tmp_path, 4, freeze=["net.a"]).train()
    message = str(refused.value)
    assert "frozen in the checkpoint but not in this run: net.b.weight, net.b.bias" in message
    assert "frozen in this run but not in the checkpoint: net.a.weight, net.a.bias" in message


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    def of(*layers: str) -> dict[str, Any]:
        net = Net()
        parameters = [parameter for layer in layers for parameter in net.get_submodule(layer).parameters()]
        return {"net": net, "optim": torch.optim.SGD(parameters, lr=0.1, momentum=0.9)}

    runner(work_dir=tmp_path, **of("a", "c")).train()
    with pytest.raises(
        ConfigError,
        match=r"trained in the checkpoint but not in this run: net\.a\.weight.*"
        r"in this run but not in the checkpoint: net\.b\.",
    ):
        runner(work_dir=tmp_path, epochs=4, **of("c", "b")).train()


def test_other_shapes_and_dtypes_are_refused(tmp_path: Path) -> None:
    runner(Net(), tmp_path).train()
    with pytest.raises(ConfigError, match=r"net\.a\.weight has shape \[6, 4\] instead of \[5, 4\]"):
        runner(Net(width=5), tmp_path, 4).train()
    state = checkpoint.load(tmp_path / "checkpoints/epoch_0002.pt")
    state["parameters"]["groups"][""][0][1][2] = "float64"
    checkpoint.save(tmp_path / "checkpoints/epoch_0002.pt", state)
    with pytest.raises(ConfigError, match=r"net\.a\.bias is \[6\] in float64, but \[6\] in float32 in this run"):
        runner(Net(), tmp_path, 4).train()


def test_other_groups_are_refused(tmp_path: Path) -> None:
    runner(Net(), tmp_path, optim=ADAM | {"paramwise": PARAMWISE}).train()
    told = r"parameter groups are .*\(net\.a\.weight, net\.a\.bias\) and .*but this run has \("
    with pytest.raises(ConfigError, match=told):
        runner(Net(), tmp_path, 4, optim=ADAM).train()


def test_a_checkpoint_without_names_counts_as_it_did(tmp_path: Path) -> None:
    (whole := runner(Net(), None, 4)).train()
    runner(Net(), tmp_path).train()
    path = tmp_path / "checkpoints/epoch_0002.pt"
    state = checkpoint.load(path)
    del state["parameters"]
    checkpoint.save(path, state)
    (resumed := runner(Net(), tmp_path, 4)).train()
    assert_same(weights(resumed), weights(whole))
    checkpoint.save(path, state)
    with pytest.raises(
        ConfigError, match=r"momentum_buffer for parameter 0 has the shape \[6, 4\], but net\.c\.weight has"
    ):
        runner(Net("cba"), tmp_path / "other", 6, resume=path).train()


def test_members_of_stacks_are_bound_by_the_same_names(tmp_path: Path) -> None:
    """The saved parameters are turned around, as by a run whose layers were registered in another order."""
    node = {"_target_": MLP, "in_features": 4, "num_classes": 3, "hidden": [6]}
    common: dict[str, Any] = {"model": node, "optim": ADAM, "metric": METRICS, "hook": {"checkpoint": Checkpoint()}}
    common |= {"data": {"_target_": f"{__name__}.Rows"}, "device": "cpu"}
    loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop"}

    def config(seed: int, epochs: int, name: str) -> dict[str, Any]:
        return common | {
            "seed": seed,
            "loop": loop | {"max_epochs": epochs},
            "work_dir": tmp_path / name,
            "resume": True,
        }

    FusedRunner([config(seed, 2, str(seed)) for seed in (0, 1)]).train()
    path = tmp_path / "1/checkpoints/epoch_0002.pt"
    state = checkpoint.load(path)
    turned = copy.deepcopy(state)
    (entries,) = turned["parameters"]["groups"][""]
    entries.reverse()
    last = len(entries) - 1
    turned["optimizer"]["state"] = {last - key: entry for key, entry in state["optimizer"]["state"].items()}
    results = []
    for name, saved in (("straight", state), ("turned", turned)):
        checkpoint.save(tmp_path / f"{name}.pt", saved)
        alone = Runner.from_cfg(config(1, 3, name), resume=tmp_path / f"{name}.pt")
        stack = FusedRunner([config(1, 3, f"{name}{k}") | {"resume": tmp_path / f"{name}.pt"} for k in range(2)])
        alone.train()
        stack.train()
        results.append((weights(alone), weights(stack)))
    for straight, turned_around in zip(*results, strict=True):
        assert_same(turned_around, straight)


def Rows() -> Any:  # noqa: N802 - a target of a config
    x, y = data()["train"].dataset.tensors
    return ArrayData({"train": (x, y), "val": (x, y)}, {"num_classes": 3}, batch_size=8)


def test_several_optimizers_are_bound_each_by_its_name() -> None:
    def made() -> tuple[nn.Module, Any, identity.Beginning]:
        torch.manual_seed(0)
        model = GAN(in_features=2, num_classes=2, hidden=[4])
        optimizer = build_several(dict.fromkeys(model.optimizer_groups, partial(torch.optim.Adam, lr=0.1)), model)
        return model, optimizer, identity.Beginning.of(model, optimizer)

    model, optimizer, beginning = made()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float(parameter.numel()))
    optimizer.step()
    saved, state = identity.record(model, optimizer, beginning), optimizer.state_dict()
    for groups in saved["groups"].values():
        groups[0].reverse()
    for each in state["optimizers"].values():
        last = len(each["param_groups"][0]["params"]) - 1
        each["state"] = {last - key: entry for key, entry in each["state"].items()}
    fresh, other, begun = made()
    other.load_state_dict(identity.bind(fresh, other, begun, saved, state).optimizer(state))
    for own, theirs in zip(fresh.parameters(), model.parameters(), strict=True):
        assert torch.equal(other.state[own]["exp_avg"], optimizer.state[theirs]["exp_avg"])
    del saved["groups"]["generator"]
    single: dict[str, Any] = {"groups": {"": []}}
    with pytest.raises(ValueError, match="it contains one optimizer, but this run has discriminator, generator"):
        identity.bind(*made(), single, state)
    with pytest.raises(ValueError, match="its optimizers are discriminator, but this run has"):
        identity.bind(*made(), saved, state)
