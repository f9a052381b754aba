"""Numbers of an optimizer for single parameters: which rule holds for which, alone and in a fused group."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainyard.config.schema import check
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.optim import SAM, Paramwise, build, from_config
from trainyard.optim.paramwise import fits
from trainyard.runner import Runner
from trainyard.schedules import Schedule


class RMSNorm2d(nn.Module):
    """A layer of a user's own that normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.BatchNorm2d(2), RMSNorm2d())
        self.head = nn.Linear(2, 3)
        self.temperature = nn.Parameter(torch.ones(1))


def optimizer_of(rules: dict[str, Any] | None, model: nn.Module | None = None, **numbers: Any) -> Optimizer:
    model = model or Net()
    keywords = {"lr": 0.1, "weight_decay": 0.01} | numbers
    return build(partial(AdamW, **keywords, paramwise=rules), model.parameters(), model)


def table(optimizer: Optimizer, model: nn.Module) -> dict[str, tuple[str, float, float]]:
    """By parameter: its group, learning rate and weight decay."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: (group.get("name"), group["lr"], group["weight_decay"])  # type: ignore[misc]
        for group in optimizer.param_groups
        for param in group["params"]
    }


@pytest.mark.parametrize("rules", [None, {}])
def test_without_rules_there_is_one_group_as_ever(rules: Any) -> None:
    (group,) = optimizer_of(rules).param_groups
    assert len(group["params"]) == 8
    assert "name" not in group


def test_every_kind_of_rule() -> None:
    model = Net()
    rules = {
        "bias_lr_mult": 2,
        "bias_decay_mult": 3,
        "norm_decay_mult": 0,
        "dwconv_decay_mult": 5,
        "flat_decay_mult": 7,
    }
    optimizer = optimizer_of(rules, model, lr=1.0, weight_decay=1.0)
    assert table(optimizer, model) == {
        "backbone.0.weight": ("dwconv", 1, 5),
        "backbone.0.bias": ("bias", 2, 3),
        "backbone.1.weight": ("norm", 1, 0),
        "backbone.1.bias": ("norm", 1, 0),
        "backbone.2.scale": ("norm", 1, 0),
        "head.weight": ("default", 1, 1),
        "head.bias": ("bias", 2, 3),
        "temperature": ("flat", 1, 7),
    }
    assert optimizer.param_groups[0]["name"] == "default"


def test_the_bias_of_a_layer_that_normalizes_is_a_bias_for_the_weight_decay_alone() -> None:
    model = Net()
    optimizer = optimizer_of({"bias_lr_mult": 2, "bias_decay_mult": 0}, model, lr=1.0, weight_decay=1.0)
    found = table(optimizer, model)
    assert found["backbone.1.bias"] == ("norm_bias", 1, 0)
    assert found["head.bias"] == ("bias", 2, 0)
    assert found["backbone.1.weight"] == ("default", 1, 1)


def test_a_bias_is_what_its_module_calls_so() -> None:
    model = nn.MultiheadAttention(4, 2)  # with an in_proj_bias
    found = table(optimizer_of({"bias_decay_mult": 0}, model, weight_decay=1.0), model)
    assert {name for name, (_, _, decay) in found.items() if decay == 0} == {"out_proj.bias"}


def test_a_pattern_may_replace_any_argument_of_the_optimizer() -> None:
    model = Net()
    rules = {"custom_keys": {"head": {"lr_mult": 0.5, "betas": [0.8, 0.9]}, "backbone": {"lr": 0.3, "lr_mult": 2}}}
    default, backbone, head = optimizer_of(rules, model).param_groups
    assert (head["lr"], head["betas"]) == (0.05, [0.8, 0.9])
    assert (backbone["lr"], backbone["betas"]) == (0.3, (0.9, 0.999))
    assert (default["lr"], default["betas"]) == (0.1, (0.9, 0.999))


def test_a_pattern_comes_before_all_else_and_the_longest_before_the_others() -> None:
    model = Net()
    rules = {
        "norm_decay_mult": 0,
        "bias_lr_mult": 9,
        "custom_keys": {
            "backbone": {"lr_mult": 2, "decay_mult": 3},
            "backbone.1": {"lr_mult": 4},
            "*.bias": {"decay_mult": 0},
        },
    }
    optimizer = optimizer_of(rules, model, lr=1.0, weight_decay=1.0)
    assert table(optimizer, model) == {
        "backbone.0.weight": ("backbone", 2, 3),
        "backbone.0.bias": ("backbone", 2, 3),
        "backbone.1.weight": ("backbone.1", 4, 1),
        "backbone.1.bias": ("backbone.1", 4, 1),
        "backbone.2.scale": ("backbone", 2, 3),
        "head.weight": ("default", 1, 1),
        "head.bias": ("*.bias", 1, 0),
        "temperature": ("default", 1, 1),
    }


@pytest.mark.parametrize(
    ("pattern", "name", "does"),
    [
        ("backbone", "net.backbone.0.weight", True),
        ("net.*.weight", "net.backbone.0.weight", True),
        ("backbone.*", "net.backbone.0.weight", False),
        ("head", "net.backbone.0.weight", False),
        ("layers.[01].*", "layers.1.bias", True),
    ],
)
def test_patterns(pattern: str, name: str, does: bool) -> None:
    assert fits(pattern, name) is does


def test_frozen_parameters_stay_out_and_may_be_named() -> None:
    model = Net()
    model.head.requires_grad_(False)
    rules = {"custom_keys": {"head": {"lr_mult": 0.5}}}
    trained = [param for param in model.parameters() if param.requires_grad]
    optimizer = build(partial(SGD, lr=1.0, paramwise=rules), trained, model)
    assert not any(name.startswith("head") for name in table(optimizer, model))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight


def test_tied_parameters_are_stepped_once() -> None:
    model = Tied()
    optimizer = optimizer_of({"bias_lr_mult": 2}, model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_tied_parameters_under_two_rules() -> None:
    model = Tied()
    rules = {"custom_keys": {"head": {"lr_mult": 0.5}}}
    with pytest.raises(ConfigError) as error:
        optimizer_of(rules, model)
    assert str(error.value) == (
        "paramwise.bypass_duplicate: False is invalid. Expected true, or the same rule for all names of this "
        "tied parameter: embedding.weight and head.weight."
    )
    optimizer = optimizer_of(rules | {"bypass_duplicate": True}, model)
    assert table(optimizer, model) == {"embedding.weight": ("default", 0.1, 0.01), "head.bias": ("head", 0.05, 0.01)}


@given(
    model=st.sampled_from([Net, Tied]),
    keys=st.lists(st.sampled_from(["weight", "bias", "e", "h*", "*.[01].*", "*"]), unique=True),
    switches=st.lists(
        st.sampled_from(["bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult"]), unique=True
    ),
    factors=st.tuples(st.sampled_from([0, 0.5, 1]), st.sampled_from([0, 0.5, 1])),
)
def test_every_parameter_is_in_one_group_and_the_numbers_do_not_decide_in_which(
    model: Any, keys: list[str], switches: list[str], factors: tuple[float, float]
) -> None:
    def groups(factor: float, built: nn.Module) -> list[tuple[str, list[int]]]:
        rules = Paramwise(
            {key: {"lr_mult": factor, "decay_mult": factor} for key in keys},
            **dict.fromkeys(switches, factor),
            bypass_duplicate=True,
        )
        order = {id(param): index for index, param in enumerate(built.parameters())}
        found = rules.groups(built, built.parameters(), {"lr": 1.0, "weight_decay": 1.0})
        return [(group["name"], [order[id(param)] for param in group["params"]]) for group in found]

    try:
        one, other = (groups(factor, model()) for factor in factors)
    except ConfigError as error:
        assert error.key == "custom_keys"  # noqa: PT017 - it may be raised or not
        return
    assert one == other
    assert sorted(index for _, indices in one for index in indices) == list(range(len(list(model().parameters()))))
    assert len({name for name, _ in one}) == len(one)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (
            {"custom_keys": {"bakbone": {"lr_mult": 0.1}}},
            "paramwise.custom_keys: 'bakbone' is invalid. Expected a part of a parameter's name, or a glob that "
            "matches a parameter's name. "
            "Did you mean 'backbone'?",
        ),
        ({"norm_decay_mul": 0}, "Did you mean 'norm_decay_mult'?"),
        (
            {"custom_keys": {"head": {"lr_mul": 0}}},
            "custom_keys.head: 'lr_mul' is invalid. Expected lr_mult, decay_mult or an argument of the optimizer. "
            "Did you mean 'lr_mult'?",
        ),
        (
            {"custom_keys": {"head": {"betas": [0.9, 2]}}},
            "paramwise.custom_keys.head.betas: [0.9, 2] is invalid. Expected two numbers of at least 0 and below 1.",
        ),
        (
            {"custom_keys": {"head": {"betas": [0.9]}}},
            "paramwise.custom_keys.head.betas: [0.9] is invalid. Expected a list of 2 numbers.",
        ),
        (
            {"layer_decay": 0.5, "layers": ["backbone.*"], "custom_keys": {"head": {"betas": [0.9, 2]}}},
            "paramwise.custom_keys.head.betas: [0.9, 2] is invalid. Expected two numbers of at least 0 and below 1.",
        ),
        ({"layer_decay": 0.5, "layers": []}, "paramwise.layers: [] is invalid. Expected globs that match the layers"),
        ({"custom_keys": {"head": {"eps": "x"}}}, "paramwise.custom_keys.head.eps: 'x' is invalid"),
        ({"custom_keys": {"head": 0.1}}, "paramwise.custom_keys.head: 0.1 is invalid. Expected a mapping with lr_mult"),
        ({"custom_keys": ["head"]}, "paramwise.custom_keys: ['head'] is invalid. Expected a mapping"),
        ({"norm_decay_mult": -1}, "paramwise.norm_decay_mult: -1 is invalid. Expected a number of at least 0, or null"),
        ({"bias_lr_mult": True}, "paramwise.bias_lr_mult: True is invalid"),
        ({"custom_keys": {"head": {"lr_mult": "x"}}}, "paramwise.custom_keys.head.lr_mult: 'x' is invalid"),
        ("norm", "paramwise: 'norm' is invalid. Expected a mapping of rules, or null"),
    ],
)
def test_rules_that_cannot_work(rules: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        optimizer_of(rules)
    assert told in str(error.value)


class Undecayed(Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})


@pytest.mark.parametrize("rules", [{"norm_decay_mult": 0}, {"custom_keys": {"head": {"decay_mult": 0}}}])
def test_a_decay_where_there_is_none(rules: Any) -> None:
    model = Net()
    with pytest.raises(ConfigError, match="Expected null, because this optimizer has no weight_decay"):
        build(partial(Undecayed, paramwise=rules), model.parameters(), model)


def test_the_numbers_of_the_base_of_sam() -> None:
    model = Net()
    base = partial(SGD, weight_decay=0.01)
    rules = {"norm_decay_mult": 0, "custom_keys": {"head": {"decay_mult": 2, "momentum": 0.5, "rho": 0.1}}}
    optimizer: Any = build(partial(SAM, lr=0.1, base=base, paramwise=rules), model.parameters(), model)
    found = {name: decay for name, (_, _, decay) in table(optimizer, model).items()}
    assert (found["backbone.0.weight"], found["backbone.1.weight"], found["head.weight"]) == (0.01, 0, 0.02)
    assert [(group["name"], group["momentum"], group["rho"]) for group in optimizer.base.param_groups] == [
        ("default", 0, 0.05),
        ("norm", 0, 0.05),
        ("head", 0.5, 0.1),
    ]
    rules = {"custom_keys": {"head": {"momentum": -1}}}
    with pytest.raises(ConfigError, match=r"^paramwise\.custom_keys\.head\.momentum: -1 is invalid"):
        build(partial(SAM, base=base, paramwise=rules), model.parameters(), model)


def test_an_optimizer_without_groups() -> None:
    model = Net()
    made = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe", paramwise={"bias_lr_mult": 2})
    with pytest.raises(ConfigError, match="Expected null, because LBFGS does not support parameter"):
        build(made, model.parameters(), model)


def test_a_number_that_the_optimizer_refuses_is_told_as_ever() -> None:
    with pytest.raises(ConfigError, match=r"lr: 'fast' is invalid"):
        optimizer_of({"bias_lr_mult": 2}, lr="fast")


def test_from_the_config() -> None:
    node = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1.0, "paramwise": {"bias_lr_mult": 0.5}}
    for value in (node, OmegaConf.create(node)):
        model = Net()
        optimizer = build(from_config(value), model.parameters(), model)
        assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    made = Adam([torch.zeros(1)])
    assert from_config(made) is made


def test_the_check_of_a_config_knows_the_rules() -> None:
    optim = {"_target_": "torch.optim.Adam", "_partial_": True}
    check(OmegaConf.create({"optim": optim | {"paramwise": {"bias_lr_mult": 0.5}}}))
    check(OmegaConf.create({"optim": optim | {"paramwise": None}}))
    with pytest.raises(ConfigError, match=r"optim\.paramwise: 'bias_lr' is invalid.*Did you mean 'bias_lr_mult'"):
        check(OmegaConf.create({"optim": optim | {"paramwise": {"bias_lr": 0.5}}}))
    with pytest.raises(ConfigError, match=r"optim\.paramwise: 3 is invalid"):
        check(OmegaConf.create({"optim": optim | {"paramwise": 3}}))


def test_a_schedule_scales_each_group() -> None:
    model = Net()
    optimizer = optimizer_of({"custom_keys": {"backbone": {"lr_mult": 0.1}}}, model, lr=1.0)
    halving = Schedule(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), by="epoch")
    halving.bind(optimizer, length=3)
    assert halving.row(1) == [{"lr": 0.5}, {"lr": 0.05}]
    cycle = Schedule(partial(torch.optim.lr_scheduler.OneCycleLR, max_lr="auto", total_steps="auto"), by="iter")
    cycle.bind(optimizer, length=100)
    peaks = [max(cycle.row(index)[group]["lr"] for index in range(100)) for group in range(2)]
    assert peaks == pytest.approx([1.0, 0.1])


def config(member: int, optim: str, schedule: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    rules = {
        "norm_decay_mult": 0.5 * member,
        "bias_lr_mult": 1.0 + member,
        "custom_keys": {"net.4": {"lr_mult": 0.5**member, "decay_mult": 0.1}},
    }
    return {
        "model": {
            "_target_": "trainyard.models.MLP",
            "in_features": 2,
            "num_classes": 2,
            "hidden": [8],
            "batch_norm": True,
        },
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 100, "batch_size": 16},
        "optim": {
            "_target_": optim,
            "_partial_": True,
            "lr": 0.02 + 0.01 * member,
            "weight_decay": 0.05,
            "paramwise": rules,
        },
        "schedule": schedule,
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "hook": {"param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"}},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "device": "cpu",
        "seed": member,
    } | more


ONE_CYCLE = {
    "_target_": "trainyard.schedules.Schedule",
    "by": "iter",
    "scheduler": {
        "_target_": "torch.optim.lr_scheduler.OneCycleLR",
        "_partial_": True,
        "max_lr": "auto",
        "total_steps": "auto",
        "cycle_momentum": "auto",
    },
}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([param.detach().flatten() for param in model.parameters()])


@pytest.mark.parametrize("optim", ["torch.optim.AdamW", "torch.optim.SGD", "trainyard.optim.Lion"])
@pytest.mark.parametrize("schedule", [None, ONE_CYCLE])
def test_a_fused_group_keeps_the_groups_of_each_member(optim: str, schedule: Any) -> None:
    fused = FusedRunner([config(member, optim, schedule) for member in range(3)])
    fused.train()
    assert [group["name"] for group in fused.optimizer.param_groups] == ["default", "norm", "net.4"]
    for member, own in enumerate(fused.members):
        solo = Runner.from_cfg(config(member, optim, schedule))
        solo.train()
        torch.testing.assert_close(weights(own.model), weights(solo.model), rtol=2e-4, atol=2e-5)
        mine, theirs = own.optimizer.param_groups, solo.optimizer.param_groups
        for key in ("name", "lr", "weight_decay"):
            assert [group[key] for group in mine] == pytest.approx([group[key] for group in theirs])


def test_a_run_goes_on_in_its_groups(tmp_path: Any) -> None:
    def run(name: str, epochs: int, **more: Any) -> Runner:
        hooks = {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint"}}
        loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": epochs}
        more |= {"hook": hooks, "loop": loop, "work_dir": str(tmp_path / name)}
        runner = Runner.from_cfg(config(1, "torch.optim.AdamW", None, **more))
        runner.train()
        return runner

    whole = run("whole", 3)
    run("parts", 1)
    assert torch.equal(weights(run("parts", 3, resume=True).model), weights(whole.model))
