"""Linear layers and losses by class of all members at once: what each member computes alone, and torch under `vmap`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operations import Operations
from torch import Tensor, nn
from torch.func import functional_call

from trainyard import _fast_paths
from trainyard._fast_paths import use_fast_paths
from trainyard.fused.functional import StackedFunctions
from trainyard.fused.model import StackedModel
from trainyard.fused.probe import why
from trainyard.models import Transformer

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

K, N, C = 3, 5, 4
Loss = Callable[[Any, Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Two layers, of which the second is frozen or has no bias where asked, and a loss that is a function of them."""

    def __init__(self, loss: Loss, *, bias: bool = True, frozen: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(6, 7, bias=bias), nn.Linear(7, C, bias=bias)
        self.second.requires_grad_(not frozen)
        self.weights = nn.Buffer(torch.rand(C))
        self.constant = torch.linspace(-1, 1, 7 * 6).view(7, 6)
        self.loss = loss

    def logits(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))

    def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
        return {"loss": self.loss(self, x, y)} if mode == "loss" else self.logits(x)


def cross_entropy(**options: Any) -> Loss:
    return lambda net, x, y: F.cross_entropy(net.logits(x), y, **options)


def bounded(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return net.logits(x).tanh().mean()


def several_axes(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return net.logits(x.view(1, N, 6).expand(2, N, 6)).tanh().sum()


def one_sample(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return net.logits(x[0]).tanh().sum()


def turned(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return net.logits(x.t().contiguous().t().unsqueeze(1)).tanh().sum()


def by_name(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.linear(input=x, weight=net.first.weight, bias=None).tanh().sum()


def of_a_constant(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.linear(net.logits(x).sum(1, keepdim=True).expand(-1, 6), net.constant.to(x.dtype)).tanh().sum()


def constants_alone(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.linear(net.constant, net.constant).sum() + bounded(net, x, y)


def bias_of_all(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.linear(x, net.first.weight, net.constant[:, 0].to(x.dtype)).tanh().sum()


def log_likelihood(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(net.logits(x), 1), y)


def of_pictures(net: Net, x: Tensor, y: Tensor) -> Tensor:
    logits = net.logits(torch.stack([x, x.flip(0), x.roll(1, 0)])).permute(1, 2, 0)
    return F.cross_entropy(logits, torch.stack([y, y.flip(0), y], 1), ignore_index=1)


def weighted_by_sample(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return (F.cross_entropy(net.logits(x), y, reduction="none") * x[:, 0]).mean()


def by_position(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.logits(x), y, None, None, 2, None, "sum", 0.1)


def by_class_weight(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.logits(x), y, weight=net.weights)


def of_probabilities(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.logits(x), torch.softmax(x[:, :C], 1))


def of_one_sample(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net.logits(x[0]), y[0])


def old_style(net: Net, x: Tensor, y: Tensor) -> Tensor:
    with pytest.warns(UserWarning, match="size_average"):
        return F.cross_entropy(net.logits(x), y, size_average=False)


LEAN: dict[str, Loss] = {
    "mean": cross_entropy(),
    "sum": cross_entropy(reduction="sum"),
    "label smoothing": cross_entropy(label_smoothing=0.2),
    "ignored": cross_entropy(ignore_index=0),
    "ignored and smoothed": cross_entropy(ignore_index=0, label_smoothing=0.2),
    "weighted by sample": weighted_by_sample,
    "by position": by_position,
    "log-likelihood": log_likelihood,
    "pictures": of_pictures,
    "bounded": bounded,
    "several axes": several_axes,
    "one sample": one_sample,
    "turned": turned,
    "by name": by_name,
    "bias of all": bias_of_all,
}
"""Losses of which nothing is decomposed."""
PARTLY: dict[str, Loss] = {
    "class weights": by_class_weight,
    "probabilities": of_probabilities,
    "one sample's class": of_one_sample,
    "size_average": old_style,
    "a constant": of_a_constant,
    "constants alone": constants_alone,
}
"""Losses of which torch computes a part."""
DECOMPOSED = ("mul", "gather", "scatter_add", "where", "copy_")
"""What the operations of interest become under torch's own rules."""


def batches(own: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    leading = [K] if own else []
    x = torch.randn(*leading, N, 6, generator=generator, dtype=dtype)
    return x, torch.randint(C, (*leading, N), generator=generator)


def stack_of(
    loss: Loss, *, lean: bool = True, dtype: torch.dtype = torch.float64, own: bool = True, **options: Any
) -> Any:
    stack = StackedModel([Net(loss, seed=k, **options).to(dtype) for k in range(K)], own_batches=own)
    assert isinstance(stack._functions, StackedFunctions)
    if not lean:
        stack._functions = nullcontext()  # type: ignore[assignment]
    return stack


def results(stack: StackedModel, batch: Any) -> list[Tensor]:
    """The members' losses, and the gradients of their sum."""
    losses = stack.train_step(batch)["loss"]
    trained = [parameter for parameter in stack.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
    return [losses, *(gradient for gradient in gradients if gradient is not None)]


def alone(stack: StackedModel, batch: Any, own: bool) -> list[Tensor]:
    """As `results`, of each member's model by itself."""
    found = []
    for k, model in enumerate(stack.models):
        loss = model(*[part[k] for part in batch] if own else batch, mode="loss")["loss"]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        found.append([loss, *(gradient for gradient in gradients if gradient is not None)])
    return [torch.stack(column) for column in zip(*found, strict=True)]


def assert_close(found: list[Tensor], expected: list[Tensor], bound: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("own", [True, False], ids=["own batches", "shared batch"])
@pytest.mark.parametrize("name", [*LEAN, *PARTLY])
def test_members_compute_what_they_do_alone(name: str, own: bool) -> None:
    loss, batch = (LEAN | PARTLY)[name], batches(own)
    for options in ({}, {"bias": False}, {"frozen": True}):
        stack = stack_of(loss, own=own, **options)
        assert_close(results(stack, batch), alone(stack, batch, own))


@pytest.mark.parametrize("name", LEAN)
def test_nothing_is_decomposed(name: str) -> None:
    stack, plain = (stack_of(LEAN[name], lean=lean) for lean in (True, False))
    counts = []
    for model in (stack, plain):
        with Operations() as counted:
            model.train_step(batches(True))["loss"].sum().backward()
        counts.append(counted.phases["forward and backward"])
    multiplies = name in ("weighted by sample", "by position") or "smooth" in name
    assert not set(DECOMPOSED[multiplies:]) & set(counts[0]), counts[0]
    assert counts[0].total() < counts[1].total()


def test_a_member_without_a_target() -> None:
    """Its mean is 0 / 0, as alone; the gradients of the others are whole."""
    x, y = batches(True)
    y[1] = 2
    stack = stack_of(cross_entropy(ignore_index=2))
    found, expected = results(stack, (x, y)), alone(stack, (x, y), own=True)
    assert found[0].isnan().tolist() == [False, True, False]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_batch_without_samples() -> None:
    stack = stack_of(cross_entropy())
    x, y = batches(True)
    found = results(stack, (x[:, :0], y[:, :0]))
    assert found[0].isnan().all()
    assert_close(results(stack_of(bounded), (x[:, :0], y[:, :0]))[1:], [torch.zeros_like(each) for each in found[1:]])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mean", "bounded", "several axes", "label smoothing", "a constant"])
def test_autocast_is_that_of_a_member_alone(name: str, half: torch.dtype) -> None:
    stack = stack_of((LEAN | PARTLY)[name], dtype=torch.float32)
    batch = batches(True, torch.float32)
    with torch.autocast("cpu", half):
        found, expected = results(stack, batch), alone(stack, batch, own=True)
        outputs = stack(batches(False, torch.float32)[0], batch[1][0], mode="predict")
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    assert outputs.dtype == half
    assert_close(found, expected, 0.02)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_without_autocast(half: torch.dtype) -> None:
    stack, batch = stack_of(cross_entropy(), dtype=half), batches(True, half)
    found, expected = results(stack, batch), alone(stack, batch, own=True)
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    assert_close(found, expected, 0.02)


@pytest.mark.parametrize("name", ["mean", "several axes", "bias of all", "label smoothing"])
def test_gradients_of_gradients(name: str) -> None:
    second = []
    for lean in (True, False):
        stack = stack_of(LEAN[name], lean=lean)
        weights = [parameter for parameter in stack.parameters() if parameter.requires_grad]
        used = [w for w, g in zip(weights, results(stack, batches(True))[1:], strict=False) if g is not None]
        losses = stack.train_step(batches(True))["loss"]
        first = torch.autograd.grad(losses.sum(), used, create_graph=True, allow_unused=True)
        penalty = sum(gradient.square().sum() for gradient in first if gradient is not None)
        second.append([g for g in torch.autograd.grad(penalty, used, allow_unused=True) if g is not None])
    assert second[0]
    assert_close(*second)


def sensitivity(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """A penalty on the gradient with respect to the input, as a model may have."""
    gradient = torch.func.grad(lambda inputs: F.cross_entropy(net.logits(inputs), y))(x)
    return F.cross_entropy(net.logits(x), y) + gradient.square().sum()


def of_each_sample(net: Net, x: Tensor, y: Tensor) -> Tensor:
    def one(inputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(net.logits(inputs.unsqueeze(0)), target.unsqueeze(0))

    gradients = torch.func.vmap(torch.func.grad(one))(x, y)
    return gradients.square().sum()


def along(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return torch.func.jvp(net.logits, (x,), (torch.ones_like(x),))[1].tanh().sum()


def through_weights(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """An inner step of gradient descent."""

    def inner(weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(F.relu(net.first(x)), weight), y)

    weight = net.second.weight - 0.1 * torch.func.grad(inner)(net.second.weight)
    return inner(weight)


@pytest.mark.parametrize("loss", [sensitivity, of_each_sample, along, through_weights])
def test_transforms_within_a_model(loss: Loss) -> None:
    found, expected = (results(stack_of(loss, lean=lean), batches(True)) for lean in (True, False))
    assert_close(found, expected)


def test_a_stack_within_a_transform() -> None:
    gradients = []
    for lean in (True, False):
        stack = stack_of(cross_entropy(), lean=lean)

        def total(values: Any, stack: StackedModel = stack) -> Tensor:
            return functional_call(stack, values, batches(False), {"mode": "loss"})["loss"].sum()

        weights = {name: parameter.detach() for name, parameter in stack.named_parameters()}
        gradients.append(torch.func.grad(total)({name: value.clone() for name, value in weights.items()}))
    assert_close(*(list(each.values()) for each in gradients))


def test_a_gradient_is_not_copied_into_its_place() -> None:
    """It has the layout of its parameter, so that autograd keeps the very tensor."""
    stack = stack_of(cross_entropy())
    with Operations() as counted:
        stack.train_step(batches(True))["loss"].sum().backward()
    assert not {"copy_", "clone"} & set(counted.phases["forward and backward"])
    for parameter in stack.parameters():
        assert parameter.grad.stride() == parameter.stride()


def test_what_a_frozen_layer_keeps_for_the_backward_pass() -> None:
    """Its weight alone: of its inputs no gradient is made that would need them."""
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    stack = stack_of(lambda net, x, y: net.second(F.relu(net.first(x))).sum(), frozen=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        stack.train_step(batches(True))
    assert kept.count((K, C, 7)) == 1
    assert kept.count((K, N, 7)) == 1  # the activation's own


def test_errors_are_those_of_torch() -> None:
    def wrong(net: Net, x: Tensor, y: Tensor) -> Tensor:
        return F.linear(x[:, :3], net.first.weight).sum()

    for lean in (True, False):
        with pytest.raises(RuntimeError, match=r"size|shape") as error:
            stack_of(wrong, lean=lean).train_step(batches(True))
        assert "return F.linear(x[:, :3], net.first.weight).sum()" in why(error.value)


def test_an_error_within_names_the_line_of_the_model() -> None:
    x, y = batches(True)
    with pytest.raises(IndexError) as error:
        stack_of(cross_entropy()).train_step((x, y + C))
    assert "cross_entropy(net.logits(x), y" in why(error.value)


def test_a_transformer_follows_its_members() -> None:
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    models = []
    for seed in range(K):
        torch.manual_seed(seed)
        models.append(Transformer(11, 8, 8, 1, 2).double())
    stack = StackedModel(models)
    batch = (tokens[:, :-1], tokens[:, 1:])
    losses = stack.train_step(batch)["loss"]
    torch.testing.assert_close(losses, torch.stack([model.train_step(batch)["loss"] for model in models]))


# -- without fast paths ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    """As in a process that has not asked for anything yet."""
    _fast_paths._works.cache_clear()
    yield
    use_fast_paths(True)
    _fast_paths._works.cache_clear()


def decomposed() -> bool:
    stack = StackedModel([Net(cross_entropy(), seed=k).double() for k in range(K)], own_batches=True)
    with Operations() as counted:
        found = results(stack, batches(True))
    assert_close(found, alone(stack, batches(True), own=True))
    return set(DECOMPOSED) & set(counted.phases["forward and backward"]) != set()


def test_fast_paths_off(fresh: None) -> None:
    assert not decomposed()
    use_fast_paths(False)
    assert decomposed()


def _gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._functorch, "_add_batch_dim")


def _changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C._functorch, "maybe_current_level", lambda: 1)


@pytest.mark.parametrize("change", [_gone, _changed])
def test_a_torch_without_the_way_out_of_vmap(
    change: Any, fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "trainyard"):
        change(patch)
        stack = StackedModel([Net(cross_entropy(), seed=k) for k in range(K)])
    assert F.linear not in stack._functions._functions
    assert caplog.messages == [
        "torch._functorch.pyfunctorch.temporarily_pop_interpreter_stack is missing or has changed. "
        "Fallback: torch's batching rules."
    ]


def test_a_group_norm_of_channels_that_are_last_in_memory() -> None:
    net = nn.GroupNorm(2, 4)
    x = torch.randn(K, N, 3, 3, 4).movedim(-1, 2)
    with StackedFunctions():
        stacked = torch.vmap(net)(x)
    torch.testing.assert_close(stacked, torch.stack([net(each) for each in x]))
