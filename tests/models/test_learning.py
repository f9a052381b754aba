"""The defaults of conf/model learn, on real data, in seconds."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor

from trainyard.metrics import Accuracy, CrossEntropy
from trainyard.models import BaseModel, Supervised, Transformer, total_loss

CONF = Path(__file__).parents[2] / "conf" / "model"
SPEC = {
    "loss": None,
    "in_features": 64,
    "in_channels": 1,
    "image_size": 8,
    "num_classes": 10,
    "vocab_size": 50,
    "context_length": 32,
}


def configured(name: str, **overrides: Any) -> BaseModel:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    for key, value in node.items():
        if value == "auto":
            node[key] = SPEC[key]
    return instantiate(OmegaConf.merge(node, overrides), _convert_="all")


LIBRARIES = (
    "lightning",
    "timm",
    "torchvision",
    "transformers",
)  # tests/models
OWN = sorted(path for path in CONF.glob("*.yaml") if path.stem not in LIBRARIES)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_every_option_says_what_it_is_and_builds(path: Path) -> None:
    assert path.read_text().startswith("# ")
    model = configured(path.stem)
    node = OmegaConf.load(path)
    accepted = inspect.signature(type(model)).parameters
    assert set(node) - {"_target_"} <= set(accepted)
    for key, value in node.items():  # the file shows what the class does by itself
        default = accepted[key].default if key in accepted else inspect.Parameter.empty
        if default is not inspect.Parameter.empty:
            assert (list(default) if isinstance(default, tuple) else default) == (None if value == "auto" else value)


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    images, classes = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(classes)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return (x[train], y[train]), (x[test], y[test])


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "overrides"),
    [("mlp", 20, 1e-3, {}), ("cnn", 5, 1e-3, {}), ("resnet", 8, 3e-3, {"depth": 8})],
)
def test_digits(name: str, epochs: int, lr: float, overrides: dict[str, Any]) -> None:
    torch.manual_seed(0)
    (x, y), test = digits()
    model = configured(name, **overrides)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            total_loss(model.train_step((x[index], y[index]))).backward()
            optimizer.step()
    model.eval()
    accuracy = Accuracy()
    with torch.inference_mode():
        accuracy.process(test, model.val_step(test))
    assert accuracy.compute() >= 0.97


def test_a_transformer_beats_the_pairs_of_characters() -> None:
    source = inspect.getsource(argparse)
    index = {c: i for i, c in enumerate(sorted(set(source)))}
    tokens = torch.tensor([index[c] for c in source])
    train, test = tokens[: int(0.9 * len(tokens))], tokens[int(0.9 * len(tokens)) :]

    counts = torch.ones(len(index), len(index))
    counts.index_put_((train[:-1], train[1:]), torch.ones(()), accumulate=True)
    bigram = CrossEntropy()
    bigram.process((test[:-1], test[1:]), counts.log()[test[:-1]])

    torch.manual_seed(0)
    length, steps = 32, 200
    model = Transformer(len(index), length, dim=64, heads=4, layers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        window = train[torch.randint(len(train) - length, (32, 1)) + torch.arange(length + 1)]
        optimizer.zero_grad()
        total_loss(model.train_step((window[:, :-1], window[:, 1:]))).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    loss = CrossEntropy()
    windows = test[: len(test) // (length + 1) * (length + 1)].view(-1, length + 1)
    with torch.inference_mode():
        for part in windows.split(64):
            loss.process((part[:, :-1], part[:, 1:]), model.val_step((part[:, :-1], part[:, 1:])))
    assert loss.compute() < bigram.compute() - 0.1


def test_regression_through_supervised() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 3)
    y = (x @ torch.tensor([1.0, -2.0, 0.5])).unsqueeze(-1)
    model = instantiate(
        {
            "_target_": "trainyard.models.Supervised",
            "net": {"_target_": "trainyard.models.MLP", "in_features": 3, "num_classes": 1, "hidden": [32]},
            "loss": {"_target_": "torch.nn.MSELoss"},
        },
        _convert_="all",
    )
    assert isinstance(model, Supervised)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = total_loss(model.train_step((x, y))).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = total_loss(model.train_step((x, y)))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first
