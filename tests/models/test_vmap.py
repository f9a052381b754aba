"""Every model under `torch.func.vmap` over stacked parameters: what a fused group does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from trainyard.models import CNN, MLP, BaseModel, DataPreprocessor, ResNet, Supervised, Transformer, call

K = 3
Batch = tuple[Tensor, Tensor]

# scaled_dot_product_attention has no batching rule on the CPU: it is run member by member, correctly, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def images() -> Batch:
    return torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randint(4, (6,))


def text() -> Batch:
    return torch.randint(11, (6, 8)), torch.randint(11, (6, 8))


CASES: dict[str, tuple[Callable[[float], BaseModel], Callable[[], Batch]]] = {
    "mlp": (lambda p: MLP(64, 4, [8, 8], dropout=p), images),
    "mlp_batch_norm": (lambda p: MLP(64, 4, [8, 8], dropout=p, batch_norm=True), images),
    "cnn": (lambda p: CNN(1, 4, [4, 8], dropout=p), images),
    "resnet": (lambda p: ResNet(1, 4, depth=8, width=2), images),
    "rotary": (lambda p: Transformer(11, 8, 16, 2, 2, dropout=p, positions="rotary"), text),
    "learned": (lambda p: Transformer(11, 8, 16, 2, 2, dropout=p, positions="learned", tie_embeddings=False), text),
    "supervised": (
        lambda p: Supervised(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(p), nn.Linear(8, 4)),
            nn.CrossEntropyLoss(label_smoothing=0.1),
        ),
        images,
    ),
}
DROPOUT = [name for name in CASES if name != "resnet"]


def stacked(models: list[BaseModel]) -> tuple[BaseModel, dict[str, Tensor], dict[str, Tensor]]:
    base = copy.deepcopy(models[0]).to("meta")
    params, buffers = stack_module_state(models)
    return base, params, buffers


def run(
    base: BaseModel, params: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch, mode: str, own: bool
) -> Any:
    def one(params: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Any:
        return functional_call(base, (params, buffers), batch, {"mode": mode})

    return vmap(one, in_dims=(0, 0, 0 if own else None), randomness="different")(params, buffers, batch)


@pytest.mark.parametrize("own", [False, True], ids=["shared batch", "own batches"])
@pytest.mark.parametrize("name", CASES)
def test_a_stack_trains_as_its_members_do_alone(name: str, own: bool) -> None:
    """Three SGD steps: losses, weights, and the running statistics of BatchNorm, which change in place."""
    torch.manual_seed(0)
    build, make = CASES[name]
    models = [build(0.0).double() for _ in range(K)]
    base, params, buffers = stacked([copy.deepcopy(m) for m in models])
    for _ in range(3):
        batches = [make() for _ in range(K)] if own else [make()] * K
        batch = tuple(torch.stack(part) for part in zip(*batches, strict=True)) if own else batches[0]
        losses = run(base, params, buffers, batch, "loss", own)["loss"]
        assert losses.shape == (K,)
        losses.sum().backward()
        for k, model in enumerate(models):
            loss = model.train_step(batches[k])["loss"]
            torch.testing.assert_close(losses[k], loss)
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad  # type: ignore[misc]
                    p.grad = None
        with torch.no_grad():
            for p in params.values():  # type: ignore[assignment]
                p -= 0.1 * p.grad  # type: ignore[misc]
                p.grad = None
    for k, model in enumerate(models):
        for name_, p in model.named_parameters():
            torch.testing.assert_close(params[name_][k], p)
        for name_, b in model.named_buffers():
            torch.testing.assert_close(buffers[name_][k], b)
            if name_.endswith("num_batches_tracked"):
                assert b == 3

    base.eval()
    x, y = make()
    outputs = run(base, params, buffers, (x, y), "predict", False)
    for k, model in enumerate(models):
        torch.testing.assert_close(outputs[k], model.eval().val_step((x, y)))


@pytest.mark.parametrize("name", DROPOUT)
def test_members_drop_different_units(name: str) -> None:
    build, make = CASES[name]
    model = build(0.5).double()
    base, params, buffers = stacked([copy.deepcopy(model) for _ in range(K)])
    losses = run(base, params, buffers, make(), "loss", False)["loss"]
    losses.sum().backward()
    assert losses.unique().numel() == K

    base, params, buffers = stacked([copy.deepcopy(model) for _ in range(K)])
    base.eval()
    losses = run(base, params, buffers, make(), "loss", False)["loss"]
    torch.testing.assert_close(losses, losses[:1].expand(K))


@pytest.mark.parametrize("name", CASES)
def test_a_step_runs_without_a_read_of_the_device(name: str) -> None:
    """On meta tensors there is nothing to read: an `.item()` or a branch on a value would raise."""
    build, make = CASES[name]
    model = build(0.1).double().to("meta")
    loss = model.train_step(make())["loss"]
    loss.backward()
    assert loss.device.type == "meta"


def test_a_preprocessor_is_part_of_what_is_stacked() -> None:
    class Step(nn.Module):
        def __init__(self, model: BaseModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Batch) -> Tensor:
            return call(self.model, self.model.preprocess(batch), "predict")

    models = [Step(MLP(64, 4, [8], data_preprocessor=DataPreprocessor([0.5], [2.0]))) for _ in range(K)]
    base = copy.deepcopy(models[0]).to("meta")
    params, buffers = stack_module_state(models)
    batch = (torch.randn(6, 1, 8, 8), torch.zeros(6, dtype=torch.long))
    out = vmap(lambda p, b: functional_call(base, (p, b), (batch,)))(params, buffers)
    for k, model in enumerate(models):
        torch.testing.assert_close(out[k], model(batch))
