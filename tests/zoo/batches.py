"""Data of each kind, random and small."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from tests.zoo.cases import CLASSES, WORDS
from torch import Tensor
from torch.utils.data import DataLoader

SAMPLES, BATCH = 12, 4


def loaders(kind: str) -> dict[str, Any]:
    """Return the loaders for training and validation."""
    torch.manual_seed(1)
    samples = DATA[kind]()
    if kind == "graphs":
        loader = importlib.import_module("torch_geometric.loader").DataLoader
        return {"train": loader(samples, BATCH, shuffle=True), "val": loader(samples, BATCH)}
    return {"train": DataLoader(samples, BATCH, shuffle=True), "val": DataLoader(samples, BATCH)}


def inputs(kind: str) -> Any:
    """Return a batch without its target, as arrays; None where they are no arrays."""
    if kind == "graphs":
        return None
    batch = next(iter(loaders(kind)["val"]))
    if isinstance(batch, dict):
        return {name: value.numpy() for name, value in batch.items() if name != "labels"}
    return batch[0].numpy()


def _images() -> list[Any]:
    return [(torch.randn(3, 32, 32), torch.randint(CLASSES, ())) for _ in range(SAMPLES)]


def _masks() -> list[Any]:
    return [(torch.randn(3, 32, 32), torch.randint(CLASSES, (32, 32))) for _ in range(SAMPLES)]


def _texts() -> list[dict[str, Tensor]]:
    found = []
    for number in range(SAMPLES):
        mask = (torch.arange(10) < 4 + number % 6).long()
        words = torch.randint(1, WORDS, (10,)) * mask
        found.append({"input_ids": words, "attention_mask": mask, "labels": torch.randint(CLASSES, ())})
    return found


def _tags() -> list[dict[str, Tensor]]:
    return [each | {"labels": torch.randint(CLASSES, (10,))} for each in _texts()]


def _tokens() -> list[dict[str, Tensor]]:
    return [{"input_ids": words, "labels": words} for words in torch.randint(WORDS, (SAMPLES, 10))]


def _sequences() -> list[Any]:
    return [(words[:-1], words[1:]) for words in torch.randint(WORDS, (SAMPLES, 10))]


def _graphs() -> list[Any]:
    data = importlib.import_module("torch_geometric.data").Data
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    return [data(x=torch.randn(5, 4), edge_index=edges, y=torch.randint(CLASSES, (1,))) for _ in range(SAMPLES)]


DATA = {
    "images": _images,
    "masks": _masks,
    "texts": _texts,
    "tags": _tags,
    "tokens": _tokens,
    "sequences": _sequences,
    "graphs": _graphs,
}
