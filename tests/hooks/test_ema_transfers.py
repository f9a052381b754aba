"""Updates of an average on the device: nothing is read from it and nothing is copied to it; the bits are torch's."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainyard.errors import Unfusable
from trainyard.fused.model import StackedModel
from trainyard.hooks import EMA
from trainyard.models import MLP

KINDS = ("exponential", "swa", "annealing")


class Transfers(TorchDispatchMode):
    """The calls of operators with tensors on two devices, or with a number that is read from the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        if len(devices) > 1 or function.overloadpacket is torch.ops.aten._local_scalar_dense:
            self.found.append(function)
        return result


def mlp() -> Any:
    return MLP(in_features=2, num_classes=2, hidden=[4], batch_norm=True)


def hook_of(members: int, **settings: Any) -> Any:
    """A hook for one member, or for several with decays of their own."""
    hook = EMA(decay=0.5, **settings)
    if members > 1:
        hook.stack([EMA(decay=0.5 + 0.1 * member, **settings) for member in range(members)])
    return hook


@pytest.mark.parametrize("update_buffers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [1, 3])
def test_an_update_transfers_nothing(members: int, kind: str, update_buffers: bool) -> None:
    """The meta device stands for any device but the host; each member's decay is copied there once."""
    models = [mlp().to("meta") for _ in range(members)]
    runner: Any = SimpleNamespace(model=models[0] if members == 1 else StackedModel(models))
    hook = hook_of(members, kind=kind, update_buffers=update_buffers, gamma=2.0)
    hook._averaged(runner)
    for update in range(5):
        with Transfers() as transfers:
            hook._take_weights(runner)
        once = members > 1 and kind != "swa" and update == 1
        assert bool(transfers.found) == once
    assert hook.state_dict() == {"updates": 5, "first": None}


@pytest.mark.parametrize("update_buffers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_averages_of_one_member_have_the_bits_of_torchs(kind: str, update_buffers: bool) -> None:
    hook: Any = hook_of(1, kind=kind, update_buffers=update_buffers, gamma=2.0)
    runner: Any = SimpleNamespace(model=mlp())

    @torch.no_grad()
    def update(averages: Any, weights: Any, updates: Any) -> None:
        count = int(updates)
        share = {"exponential": 0.5, "swa": 1 / (count + 1), "annealing": max(0.5, 2 / (2 + count))}[kind]
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, share)
            else:
                average.copy_(weight)

    expected = AveragedModel(runner.model, multi_avg_fn=update, use_buffers=update_buffers)
    for _ in range(6):
        changed(runner.model)
        hook._take_weights(runner)
        expected.update_parameters(runner.model)
    assert_same(runner.eval_model, expected.module)


def test_a_parameter_that_is_added_begins_at_its_weights() -> None:
    """The averages of the others go on, by name, wherever the new one stands."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_module("first", None)
            self.last = torch.nn.Linear(2, 2)

    hook = EMA(decay=0.5)
    runner: Any = SimpleNamespace(model=Model())
    expected: dict[str, Any] = {}
    for update in range(6):
        if update == 3:
            runner.model.first = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
            hook._take_buffers(runner)  # between two updates, too
            added = {f"first.{name}": weight for name, weight in runner.model.first.named_parameters()}
            expected |= {name: weight.detach().clone() for name, weight in added.items()}
        changed(runner.model)
        hook._take_weights(runner)
        for name, weight in runner.model.named_parameters():
            weight = weight.detach().clone()
            expected[name] = expected[name].lerp(weight, 0.5) if name in expected else weight
    assert next(iter(runner.eval_model.state_dict())).startswith("first")
    for name, average in runner.eval_model.named_parameters():
        assert torch.equal(average, expected[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_members_with_decays_of_their_own_have_the_averages_of_single_runs(kind: str) -> None:
    """Also those that stay after one has left."""
    models = [mlp() for _ in range(3)]
    alone: list[Any] = [SimpleNamespace(model=copy.deepcopy(model)) for model in models]
    singles = [EMA(decay=0.5 + 0.1 * member, kind=kind, gamma=2.0) for member in range(3)]
    stacked: Any = SimpleNamespace(model=StackedModel(models))
    hook = hook_of(3, kind=kind, gamma=2.0)
    for update in range(6):
        if update == 3:
            stacked.model.keep([0, 2])
            stacked.eval_model.keep([0, 2])
            hook.keep([0, 2])
            del alone[1], singles[1]
        for member, runner in enumerate(alone):
            changed(runner.model)
            stacked.model.models[member].load_state_dict(runner.model.state_dict())
            singles[member]._take_weights(runner)
        hook._take_weights(stacked)
    for member, runner in enumerate(alone):
        assert_same(stacked.eval_model.models[member], runner.eval_model)


@pytest.mark.parametrize(
    ("name", "value"), [("kind", "swa"), ("begin", 3), ("interval", 2), ("gamma", 5.0), ("update_buffers", True)]
)
def test_members_differ_in_their_decay_alone(name: str, value: Any) -> None:
    with pytest.raises(Unfusable, match=f"^the members differ in {name} of hook.ema"):
        EMA().stack([EMA(), EMA(**{name: value})])


def changed(model: Any) -> None:
    """Move the model's tensors somewhere else."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else 1)


def assert_same(model: Any, expected: Any) -> None:
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
