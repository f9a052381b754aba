"""Models as people write them, in a group: frozen layers, buffers of whole numbers, mixup, dropout, workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainyard.errors import Unfusable
from trainyard.fused.model import StackedModel
from trainyard.fused.runner import FusedRunner
from trainyard.metrics import Metric
from trainyard.models import MLP, BaseModel, DataPreprocessor
from trainyard.runner import Runner

Config = dict[str, Any]


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Elaborate(BaseModel):
    """A frozen embedding tied to the output, a counter, normalised input, and mixup in a `train_step` of its own."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__(data_preprocessor=DataPreprocessor(mean=[0.5], std=[2.0]))
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.codes = nn.Embedding(3, 8)
        self.frozen = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3, bias=False)
        self.out.weight = self.codes.weight
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, y: Tensor | None = None, *, mode: str) -> Any:
        logits = self.out(torch.tanh(self.frozen(self.norm(self.first(x)))) + self.codes.weight.mean(0))
        return {"loss": nn.functional.cross_entropy(logits, y)} if mode == "loss" else logits

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = self.preprocess(batch)
        self.seen += len(y)
        mixed = 0.8 * x + 0.2 * x.flip(0)
        logits = self(mixed, mode="tensor")
        own, other = (nn.functional.cross_entropy(logits, target) for target in (y, y.flip(0)))
        return {
            "loss_own": 0.8 * own,
            "loss_mixed": 0.2 * other,
            "agreement": (logits.argmax(1) == y).to(x.dtype).mean(),
        }


class Worst(Metric):
    """The largest loss of any sample: its state is no sum over members, and it says nothing of them."""

    def process(self, batch: Any, outputs: Tensor) -> None:
        losses = nn.functional.cross_entropy(outputs, batch[1], reduction="none")
        self.state["worst"] = torch.maximum(self.state.get("worst", losses.max()), losses.max())

    def compute(self) -> Tensor:
        return self.state["worst"]


def points() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def config(member: int, model: Any, **more: Any) -> Config:
    return {
        "model": model,
        "data": {"train": DataLoader(points(), 8, shuffle=True), "val": DataLoader(points(), 20)},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.05 * (member + 1), "momentum": 0.9},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 4},
        "hook": {"logger": {"_target_": "trainyard.hooks.Logger", "interval": 3}},
        "metric": {"worst": {"_target_": Worst}, "loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "device": "cpu",
        "seed": 4,
        "work_dir": None,
    } | more


def alike(configs: list[Config], bound: float) -> FusedRunner:
    fused = FusedRunner(configs)
    fused.train()
    for own, values in zip(fused.all_members, configs, strict=True):
        solo = Runner.from_cfg(values)
        solo.train()
        for (name, tensor), expected in zip(
            own.model.state_dict().items(), solo.model.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(tensor, expected, rtol=bound, atol=bound, msg=name)
        ours = {key: value for key, value in own.metrics.items() if "time" not in key}
        theirs = {key: value for key, value in solo.members[0].metrics.items() if "time" not in key}
        assert ours == pytest.approx(theirs, rel=10 * bound)
    return fused


def test_an_elaborate_model(double: None) -> None:
    fused = alike([config(member, {"_target_": Elaborate}) for member in range(3)], 1e-10)
    stack = dict(fused.stack.named_parameters())
    assert not stack["frozen/weight"].requires_grad
    assert "out/weight" not in stack, "tied to the codes, and stepped once"
    solo = fused.members[1].model
    assert isinstance(solo, Elaborate)
    assert solo.seen == 200
    assert solo.out.weight is solo.codes.weight


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(precision: str) -> None:
    """To the rounding of 8 bits, at learning rates that do not blow it up."""
    model = {"_target_": MLP, "in_features": 6, "num_classes": 3, "hidden": [8]}
    rates = [{"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.005 * (member + 1)} for member in range(3)]
    alike([config(member, model, precision=precision, optim=rates[member]) for member in range(3)], 1e-3)


def test_members_of_one_seed_share_a_loader_with_workers() -> None:
    data = {"train": DataLoader(points(), 8, shuffle=True, num_workers=1), "val": DataLoader(points(), 20)}
    model = {"_target_": MLP, "in_features": 6, "num_classes": 3, "hidden": [8]}
    alike([config(member, model, data=data) for member in range(2)], 1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_members_drop_the_units_of_their_single_runs(share: float, double: None) -> None:
    """The points are in single precision: what they are multiplied by is not."""
    model = {"_target_": MLP, "in_features": 6, "num_classes": 3, "hidden": [16], "dropout": share}
    alike([config(member, model) for member in range(2)], 1e-10)


class Replaces(nn.Module):
    """Assigns a new tensor to its buffer: a stack would not see it."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor | None = None, *, mode: str) -> Any:
        self.seen = 0.5 * self.seen + x.mean()
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, y)} if mode == "loss" else logits


class Drawn(nn.Module):
    """Projects by a matrix that is drawn, and is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.projection = torch.randn(6, 4)

    def forward(self, x: Tensor, y: Tensor | None = None, *, mode: str) -> Any:
        logits = self.layer(x @ self.projection)
        return {"loss": nn.functional.cross_entropy(logits, y)} if mode == "loss" else logits


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Replaces, "the model replaces its buffer seen; buffers must be changed in place"),
        (Drawn, "the models differ in projection, which is neither a parameter nor a buffer"),
    ],
)
def test_what_a_stack_would_lose_is_refused(model: type[nn.Module], reason: str) -> None:
    one_loader = {"train": DataLoader(points(), 8), "val": DataLoader(points(), 20)}
    configs = [config(member, {"_target_": model}, data=one_loader) for member in range(2)]
    solos = [Runner.from_cfg(values | {"seed": seed}) for seed, values in enumerate(configs)]
    assert solos[0].model is not solos[1].model
    batch = (torch.randn(8, 6), torch.zeros(8, dtype=torch.long))
    with pytest.raises(Unfusable, match=reason):
        StackedModel([solo.model for solo in solos]).train_step(batch)


def test_a_layer_that_is_frozen_in_some_models_is_refused() -> None:
    models = [nn.Linear(4, 3) for _ in range(3)]
    models[1].requires_grad_(False)
    with pytest.raises(Unfusable, match="the models differ in weight, which is frozen in only some of them"):
        StackedModel(models)
