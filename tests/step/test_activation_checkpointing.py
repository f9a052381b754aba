"""Activation checkpointing changes nothing but memory; `compile` takes modes and arguments."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from typing import Any

import forked
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from trainyard.config.compiling import compile_arguments
from trainyard.errors import ConfigError, Unfusable
from trainyard.fused.runner import FusedRunner
from trainyard.models import MLP
from trainyard.models.activation_checkpointing import checkpoint_activations
from trainyard.runner import Runner

MODELS = {
    "mlp": {
        "_target_": "trainyard.models.MLP",
        "in_features": 2,
        "num_classes": 2,
        "hidden": [16, 16],
        "dropout": 0.3,
        "batch_norm": True,
    },
    "transformer": {
        "_target_": "trainyard.models.Transformer",
        "vocab_size": "auto",
        "context_length": "auto",
        "dim": 8,
        "layers": 2,
        "heads": 2,
        "dropout": 0.2,
    },
}


def trained(model: str = "mlp", **more: Any) -> Runner:
    rings = {"_target_": "trainyard.data.Rings", "num_samples": 100, "batch_size": 16}
    text = {"_target_": "trainyard.data.Text", "context_length": 8, "batch_size": 4}
    settings = {
        "model": MODELS[model],
        "data": text if model == "transformer" else rings,
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 12, "val_interval": 100},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "hook": {},
        "device": "cpu",
    }
    runner = Runner.from_cfg(settings | more)
    runner.train()
    return runner


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for (name, tensor), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("patterns", [["net"], ["net.1", "BatchNorm1d", "Dropout"], ["*"]])
def test_a_training_is_the_same_to_the_bit(patterns: list[str], precision: str) -> None:
    """With dropout, whose numbers are drawn twice, and BatchNorm, whose statistics would count a batch twice."""
    plain = trained(precision=precision)
    assert_same_bits(trained(activation_checkpointing=patterns, precision=precision).model, plain.model)


def test_a_transformer_is_the_same_to_the_bit() -> None:
    runner = trained("transformer", activation_checkpointing=["Block"])
    assert_same_bits(runner.model, trained("transformer").model)


def small() -> MLP:
    torch.manual_seed(0)
    return MLP(in_features=2, num_classes=2, hidden=[8, 8], dropout=0.5, batch_norm=True)


def saved_numbers(model: nn.Module) -> int:
    """How many numbers the forward pass keeps for the backward pass, apart from parameters."""
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal held
        held += 0 if tensor.data_ptr() in own else tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train_step((torch.ones(64, 2), torch.zeros(64, dtype=torch.int64)))
    return held


def test_less_is_kept() -> None:
    plain, checkpointed = small(), small()
    names = list(checkpointed.state_dict())
    checkpoint_activations(checkpointed, ["net"])
    assert saved_numbers(checkpointed) < 0.2 * saved_numbers(plain)
    assert list(checkpointed.state_dict()) == names


def test_a_module_within_a_checkpointed_one_is_not_checkpointed_again() -> None:
    model = small()
    checkpoint_activations(model, ["*"])
    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == [
        name for name, _ in model.named_children()
    ]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_stands_on_its_own(copied: Any) -> None:
    model = small()
    checkpoint_activations(model, ["net"])
    twin = copied(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.eval()
    assert twin(torch.ones(1, 2), mode="tensor").abs().sum() == 0
    twin.train_step((torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)))["loss"].backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_averaged_model_is_evaluated() -> None:
    ema = {"ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.5}}
    plain, runner = trained(hook=ema), trained(hook=ema, activation_checkpointing=["net"])
    assert_same_bits(runner.eval_model, plain.eval_model)
    assert runner.members[0].metrics["val/loss"] == plain.members[0].metrics["val/loss"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["nett"],
            "activation_checkpointing: 'nett' is invalid. Expected a glob that matches a module's name or class",
        ),
        (["nett"], "Did you mean 'net'?"),
        (["Lineer"], "Did you mean 'Linear'?"),
        ("net", "activation_checkpointing: 'net' is invalid. Expected a list of patterns"),
        ([3], "activation_checkpointing: [3] is invalid. Expected a list of patterns"),
        (True, "activation_checkpointing: True is invalid. Expected a list of patterns"),
    ],
)
def test_patterns_that_cannot_work(given: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        trained(activation_checkpointing=given)
    assert told in str(error.value)


def test_a_group_cannot() -> None:
    config = {"model": MODELS["mlp"], "activation_checkpointing": ["net"], "device": "cpu"}
    with pytest.raises(Unfusable, match="activation_checkpointing is not supported in a stack"):
        FusedRunner([config, config])


IMPORT = """
import sys
from trainyard.models import MLP
from trainyard.models.activation_checkpointing import checkpoint_activations
checkpoint_activations(MLP(2, 2), ["net"])
assert "torch._dynamo" not in sys.modules, "imported"
"""


def test_dynamo_is_not_imported_before_the_first_step() -> None:
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = forked.run([sys.executable, "-c", IMPORT], env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        (False, None),
        (None, None),
        (True, {}),
        ("max-autotune", {"mode": "max-autotune"}),
        ({}, {}),
        ({"mode": None, "dynamic": False}, {"dynamic": False}),
        ({"backend": "inductor", "options": {"a": 1}}, {"backend": "inductor", "options": {"a": 1}}),
    ],
)
def test_what_compile_stands_for(given: Any, arguments: Any) -> None:
    assert compile_arguments(given) == arguments
    if isinstance(given, dict):
        assert compile_arguments(OmegaConf.create(given)) == arguments


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("reduce-overhed", "compile: 'reduce-overhed' is invalid. Expected true, false, null, a mapping of torch.comp"),
        ("reduce-overhed", "Did you mean 'reduce-overhead'?"),
        (3, "compile: 3 is invalid. Expected true, false, null, a mode, or a mapping"),
        ({"fulgraph": True}, "Did you mean 'fullgraph'?"),
        ({"mode": "fast"}, "compile.mode: 'fast' is invalid. Expected a mode: default"),
        (
            {"mode": "default", "options": {"a": 1}},
            "compile.options: {'a': 1} is invalid. Expected null, because mode is set",
        ),
        ({"fullgraph": "yes"}, "compile.fullgraph: 'yes' is invalid. Expected true, false or null."),
        ({"dynamic": 1}, "compile.dynamic: 1 is invalid. Expected true, false or null."),
        ({"backend": 3}, "compile.backend: 3 is invalid. Expected the name of a backend of torch.compile, or null."),
        (
            {"backend": "inductr"},
            "compile.backend: 'inductr' is invalid. Expected a backend of torch.compile, such as ",
        ),
        ({"backend": "inductr"}, "Did you mean 'inductor'?"),
        ({"options": 3}, "compile.options: 3 is invalid. Expected a mapping from names of options of the backend to"),
        ({"options": {3: 3}}, "compile.options: {3: 3} is invalid. Expected a mapping from names of options"),
        (
            {"options": {"max_auto": True}},
            "compile: {'options': {'max_auto': True}} is invalid. Expected arguments that torch.compile accepts. "
            "PyTorch: Unexpected optimization option max_auto. torch._inductor.list_options() lists",
        ),
        (
            {"options": {"max_autotune": 3}},
            "PyTorch: Unexpected type of attr max_autotune, got int should be bool. torch",
        ),
    ],
)
def test_what_cannot_be_compiled(given: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        trained(compile=given)
    assert told in str(error.value)


@pytest.mark.parametrize("checkpointed", [None, ["net"]])
def test_compile_takes_a_backend(checkpointed: Any) -> None:
    """Through dynamo, the tracer, and with the backward pass traced too; no minutes of a compiler."""
    runner = trained(compile={"backend": "aot_eager"}, activation_checkpointing=checkpointed)
    assert runner.iter == 12
    assert int(runner.model.net[2].num_batches_tracked) == 12
