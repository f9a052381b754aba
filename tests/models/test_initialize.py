"""Initial values by pattern."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.models import CNN, MLP, Transformer, initialize
from trainyard.models.initialize import NAMES
from trainyard.runner import Runner

MODEL = {"_target_": CNN, "in_channels": 1, "num_classes": 3, "channels": [8, 16]}


def made(rules: Any, seed: int = 0, **model: Any) -> Any:
    """A CNN: net.0 Conv2d, net.1 BatchNorm2d, net.4 Conv2d, net.5 BatchNorm2d, net.9 Linear."""
    return Runner({**MODEL, **model}, init=rules, seed=seed, device="cpu").model


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(initialize).failed == 0


def test_rules_by_class_and_name_for_weight_and_bias() -> None:
    model = made(
        {
            "Conv2d": {"_target_": "torch.nn.init.kaiming_normal_", "mode": "fan_out", "nonlinearity": "relu"},
            "BatchNorm*": {"weight": 0.5, "bias": "ones"},
            "net.9": {"weight": {"_target_": "normal", "std": 0.01}, "bias": 0},
        }
    )
    net, plain = model.net, made(None).net
    assert abs(net[4].weight.std() / (2 / (16 * 9)) ** 0.5 - 1) < 0.1
    assert not torch.equal(net[4].weight, plain[4].weight)
    assert net[1].weight.eq(0.5).all()
    assert net[5].bias.eq(1).all()
    assert abs(net[9].weight.std() / 0.01 - 1) < 0.3
    assert net[9].bias.eq(0).all()


def test_what_no_rule_is_about_is_as_ever() -> None:
    model, plain = made({"net.0": "orthogonal"}), made(None)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == (name != "net.0.weight"), name
    flat = model.net[0].weight.flatten(1).detach()
    torch.testing.assert_close(flat @ flat.T, torch.eye(8))


def test_the_last_rule_holds() -> None:
    net = made({"*": {"bias": 0}, "net.5": {"bias": 1, "weight": 2}, "BatchNorm2d": 3}).net
    assert net[9].bias.eq(0).all()
    assert net[5].bias.eq(1).all()
    assert net[5].weight.eq(3).all()


def test_the_seed_decides() -> None:
    rules = {"Conv2d": "xavier_uniform_", "Linear": "trunc_normal"}
    first, again, other = made(rules), made(rules), made(rules, seed=1)
    assert torch.equal(first.net[9].weight, again.net[9].weight)
    assert not torch.equal(first.net[9].weight, other.net[9].weight)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made(rules)
    assert torch.equal(before, torch.get_rng_state()), "nothing else draws other numbers for it"


def test_a_model_that_is_an_object_is_initialised_too() -> None:
    model = Runner(MLP(2, 2, [4]), init={"Linear": 0.25}, device="cpu").model
    assert all(parameter.eq(0.25).all() for name, parameter in model.named_parameters() if name.endswith("weight"))


def test_parameters_of_any_name_and_of_the_model_itself() -> None:
    class Own(MLP):
        def __init__(self) -> None:
            super().__init__(2, 2, [4])
            self.token = nn.Parameter(torch.zeros(3))

    assert Runner(Own(), init={"Own": {"token": 2}}, device="cpu").model.token.tolist() == [2, 2, 2]
    model = Transformer(vocab_size=5, context_length=4, dim=8, heads=2, layers=1)
    initialize.initialize(model, {"Embedding": 7, "*.attention.qkv": {"weight": 1}})
    assert model.net.tokens.weight.eq(7).all(), "tied to the read-out"
    assert model.net.blocks[0].attention.qkv.weight.eq(1).all()


def doubled(tensor: Tensor, by: float) -> None:
    tensor.mul_(by)


def test_a_function_of_ones_own() -> None:
    model = made({"Linear": {"_target_": doubled, "by": 2.0}})
    assert torch.equal(model.net[9].weight, 2 * made(None).net[9].weight)


def test_configs_of_omegaconf() -> None:
    rules = OmegaConf.create({"name": "eye", "init": {"Linear": {"weight": "${name}", "bias": 0}}}).init
    assert torch.equal(made(rules).net[9].weight, torch.eye(3, 16))


def test_every_name_of_torch_is_known() -> None:
    assert {"kaiming_normal", "xavier_uniform", "trunc_normal", "constant", "normal", "orthogonal"} <= set(NAMES)
    assert all(callable(getattr(nn.init, f"{name}_")) for name in NAMES)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (
            {"Conv2": "normal"},
            "init: 'Conv2' is invalid. Expected a glob that matches a module's name or class. Did you mean",
        ),
        ({"net.99": 0}, "Did you mean 'net.9'?"),
        ({"Linear": "kaiming"}, "init.Linear: 'kaiming' is invalid. Expected a dotted path, or one of constant, dirac"),
        ({"Linear": "kaiming_norml"}, "Did you mean 'kaiming_normal'?"),
        ({"Linear": {"wieght": 0}}, "init.Linear: 'wieght' is invalid. Expected a parameter of the modules that match"),
        ({"Linear": {"wieght": 0}}, "Did you mean 'weight'?"),
        ({"ReLU": 0}, "init: 'ReLU' is invalid. Expected a glob that matches modules with parameters"),
        ({"Linear": {"_target_": "normal", "sdt": 1}}, "Did you mean 'std'?"),
        ({"Linear": "constant"}, "init.Linear.val: None is invalid. Expected a value"),
        ({"Linear": {"bias": [1]}}, "init.Linear.bias: [1] is invalid. Expected a number, the name of an initializer"),
        ({"Linear": True}, "with `_target_`, or a mapping from names of parameters to these."),
        ({"Linear": {"weight": True}}, "a mapping with `_target_`."),
        ({"net.1": {"gamma": 1}}, "init.net.1: 'gamma' is invalid. Expected a parameter of the modules that match"),
        ({"Linear": {"_target_": "torch.nn.init.norml_"}}, "Did you mean 'torch.nn.init.normal_'?"),
        (
            {"net.*": "kaiming_normal"},
            "an initializer that works for net.1.weight [8], which matches the pattern. The error is: Fan in",
        ),
        (["Conv2d"], "init: ['Conv2d'] is invalid. Expected a mapping from patterns"),
    ],
)
def test_rules_that_cannot_work(rules: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(rules)
    assert told in str(error.value)


def test_members_of_a_group_begin_as_they_would_alone() -> None:
    base = {"model": MODEL, "init": {"Conv2d": "kaiming_normal", "Linear": {"weight": "normal", "bias": 0.1}}}
    base |= {"data": {"_target_": "trainyard.data.Digits"}, "hook": {}, "device": "cpu"}
    base |= {"optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}}
    base |= {"loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 1}}
    base["model"] = {**MODEL, "num_classes": 10}
    configs = [base | {"seed": seed} for seed in range(3)]
    group = FusedRunner(configs)
    _ = group.model
    for solo, values in zip(group.members, configs, strict=True):
        alone = Runner.from_cfg(values).model.state_dict()
        assert all(torch.equal(tensor, alone[name]) for name, tensor in solo.model.state_dict().items())
