"""Frozen parts keep their weights and their statistics, and the optimizer does not see them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.models import CNN, MLP
from trainyard.models.freeze import freeze, unfreeze
from trainyard.runner import Runner

# net.0 Conv2d, net.1 BatchNorm2d, net.4 Conv2d, net.5 BatchNorm2d, net.9 Dropout, net.10 Linear
MODEL = {"_target_": CNN, "in_channels": 1, "num_classes": 10, "channels": [4, 6], "dropout": 0.2}
FIRST_STAGE = ["net.0", "net.1"]


def config(**more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "data": {"_target_": "trainyard.data.Digits", "batch_size": 64},
        "optim": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.01, "weight_decay": 0.1},
        "loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 6},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "hook": {},
        "device": "cpu",
    } | more


def moved(runner: Runner, before: dict[str, Any]) -> set[str]:
    return {name for name, tensor in runner.model.state_dict().items() if not torch.equal(tensor, before[name])}


def trained(**more: Any) -> tuple[Runner, set[str]]:
    runner = Runner.from_cfg(config(**more))
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    return runner, moved(runner, before)


STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("more", [{}, {"compile": {"backend": "aot_eager"}}, {"activation_checkpointing": ["net"]}])
def test_weights_and_statistics_stay(more: dict[str, Any]) -> None:
    runner, changed = trained(freeze=FIRST_STAGE, **more)
    everything = set(runner.model.state_dict())
    assert everything - changed == {name for name in everything if name.startswith(("net.0.", "net.1."))}
    stepped = {id(parameter) for group in runner.optimizer.param_groups for parameter in group["params"]}
    own = {name for name, parameter in runner.model.named_parameters() if id(parameter) in stepped}
    assert own == {"net.4.weight", "net.5.weight", "net.5.bias", "net.10.weight", "net.10.bias"}


def test_frozen_statistics_are_what_is_normalised_by() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(2)
    freeze(model := nn.Sequential(norm, nn.Linear(2, 1)), ["0"])
    model.train()
    assert (model.training, norm.training, model[1].training) == (True, False, True)
    x = torch.rand(8, 2) + 3
    torch.testing.assert_close(norm(x), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patterns", [["0.*"], ["0.weight", "0.bias"], ["*.1.*", "0"], ["BatchNorm1d"]])
def test_a_norm_is_frozen_however_it_is_named(patterns: list[str]) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 1))
    freeze(model, patterns)
    assert not model.train()[0].training


def test_a_norm_that_keeps_a_parameter_goes_on() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    freeze(model, ["*.bias"])
    assert model.train()[0].training
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["0.weight", "1.weight"]


def test_dropout_in_a_frozen_module_drops_nothing() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Dropout(), nn.Linear(2, 1))
    freeze(model, ["0"])
    model.train()
    assert (model[0][1].training, model[1].training) == (False, True)


def test_a_norm_without_parameters() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 1))
    freeze(model, ["BatchNorm1d"])
    assert not model.train()[0].training


def test_dropout_that_a_pattern_names_is_active_again_when_all_that_the_pattern_froze_is_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.Linear(2, 1))
    freeze(model, ["[0-2]"])
    assert not model[1].training
    unfreeze(model, ["2"])
    assert model[2].training
    assert not model[1].training, "what is before it is frozen"
    unfreeze(model, ["0"])
    assert model[1].training
    model.eval().train()
    assert model[1].training

    alone = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    freeze(alone, ["Dropout"])
    assert not alone.train()[1].training, "it was frozen for its own sake"


def test_a_copy_stands_on_its_own() -> None:
    model = MLP(2, 2, [4], batch_norm=True)
    freeze(model, ["BatchNorm1d"])
    twin = copy.deepcopy(model)
    twin.train()
    assert not twin.net[2].training
    assert twin.train() is twin
    del model.train
    model.train()
    assert (model.net[2].training, twin.net[2].training) == (True, False)


def test_a_norm_that_is_converted_stays_frozen() -> None:
    model = MLP(2, 2, [4], batch_norm=True)
    freeze(model, ["BatchNorm1d"])
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.train()
    assert (type(model.net[2]), model.net[2].training) == (nn.SyncBatchNorm, False)


def test_what_was_frozen_by_its_author_stays_so() -> None:
    model = MLP(2, 2, [4])
    model.net[1].bias.requires_grad_(False)
    told = freeze(model, ["net.3"])
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["net.1.weight"]
    assert told == "Frozen: 2 of 4 parameters (10 of 22 elements)"


def test_a_pattern_of_modules_without_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.Dropout())
    told = freeze(model, ["Dropout"])
    assert told == "Frozen: no parameters; 2 modules without parameters stay in evaluation mode: 1, 3"
    assert [each.training for each in model] == [True, False, True, False]
    told = freeze(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["1"])
    assert told == "Frozen: no parameters; 1 module without parameters stays in evaluation mode: 1"


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (
            ["net.99"],
            "freeze: 'net.99' is invalid. Expected a glob that matches a module's name or class, or a parameter's",
        ),
        (["BatchNorm2"], "Did you mean 'BatchNorm2d'?"),
        (["net.0.wieght"], "Did you mean 'net.0.weight'?"),
        (["net.0", "nett"], "freeze: 'nett' is invalid"),
        (["head"], "Names of modules: net, net.0, net.1, net.2 and "),
        (["*"], "freeze: ['*'] is invalid. Expected patterns that leave at least one parameter trainable."),
        (["net"], "patterns that leave at least one parameter trainable"),
        ("net.0", "freeze: 'net.0' is invalid. Expected a list of patterns"),
        ([0], "freeze: [0] is invalid. Expected a list of patterns"),
    ],
)
def test_patterns_that_cannot_work(patterns: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        _ = Runner.from_cfg(config(freeze=patterns)).model
    assert told in str(error.value)


@pytest.mark.parametrize("hook", [{}, {"ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.5}}])
def test_members_of_a_group_freeze_as_they_would_alone(hook: dict[str, Any]) -> None:
    model = {**MODEL, "dropout": 0.0}
    configs = [config(freeze=OmegaConf.create(FIRST_STAGE), seed=seed, model=model, hook=hook) for seed in range(3)]
    group = FusedRunner(configs)
    before = [copy.deepcopy(solo.model.state_dict()) for solo in group.members]
    group.train()
    for solo, values, first in zip(group.members, configs, before, strict=True):
        alone = Runner.from_cfg(values)
        alone.train()
        assert not any(name.startswith(("net.0.", "net.1.")) for name in moved(solo, first))
        for which in ("model", "eval_model"):
            expected = getattr(alone, which).state_dict()
            for name, tensor in getattr(solo, which).state_dict().items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Any) -> None:
    hook = {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "interval": 3, "by": "iter"}}
    whole, _ = trained(freeze=FIRST_STAGE, hook=hook, work_dir=tmp_path / "a")
    resumed = Runner.from_cfg(config(freeze=FIRST_STAGE, resume=next((tmp_path / "a/checkpoints").glob("iter_*3.pt"))))
    resumed.train()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
