"""The options of conf/metric."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from trainyard.metrics import Metric

CONF = Path(__file__).parents[2] / "conf" / "metric"


def built(option: str) -> dict[str, Metric]:
    return instantiate(OmegaConf.load(CONF / f"{option}.yaml").metric, _convert_="all")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_option_says_what_it_is_and_builds(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert all(isinstance(metric, Metric) for metric in built(path.stem).values())


@pytest.mark.parametrize(
    ("option", "outputs", "target", "shapes"),
    [
        (
            "classification",
            torch.randn(8, 10),
            torch.randint(10, (8,)),
            {"accuracy": (), "top5": (), "loss": (), "confusion": (10, 10)},
        ),
        ("classification", torch.randn(8, 3), torch.randint(3, (8,)), None),  # fewer than five classes
        (
            "language",
            torch.randn(4, 6, 20),
            torch.randint(20, (4, 6)),
            {"loss": (), "perplexity": (), "bits_per_character": ()},
        ),
        ("regression", torch.randn(8, 2), torch.randn(8, 2), {"mse": (), "mae": ()}),
    ],
)
def test_what_the_options_give(
    option: str, outputs: torch.Tensor, target: torch.Tensor, shapes: dict[str, tuple[int, ...]] | None
) -> None:
    results: dict[str, torch.Tensor] = {}
    for name, metric in built(option).items():
        metric.process((outputs, target), outputs)
        result = metric.compute()
        results.update(result if isinstance(result, dict) else {name: result})
    config = OmegaConf.load(CONF / f"{option}.yaml")
    assert results[config.objective.removeprefix("val/")].shape == ()
    better = "maximize" if config.objective == "val/accuracy" else "minimize"
    assert config.direction == better
    if shapes is not None:
        assert {name: tuple(value.shape) for name, value in results.items()} == shapes
