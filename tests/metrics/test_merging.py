"""However the batches of a split are dealt out to ranks, what they merge to is what one would have gathered."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainyard.errors import TrainyardError
from trainyard.fused.metrics import stack_metrics
from trainyard.metrics import (
    Accuracy,
    BitsPerCharacter,
    ConfusionMatrix,
    CrossEntropy,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    Perplexity,
    TorchMetric,
    as_metric,
)
from trainyard.metrics.energy_distance import EnergyDistance

Batch = tuple[Any, Tensor]  # a batch, and the outputs for it
CLASSES = 4


def classified(generator: torch.Generator, n: int) -> Batch:
    target = torch.randint(CLASSES, (n,), generator=generator)
    return (torch.zeros(n), target), torch.randn(n, CLASSES, generator=generator)


def sequences(generator: torch.Generator, n: int) -> Batch:
    tokens = torch.randint(CLASSES, (n, 3), generator=generator)
    return (tokens, tokens), torch.randn(n, 3, CLASSES, generator=generator)


def numbered(generator: torch.Generator, n: int) -> Batch:
    return (torch.zeros(n), torch.randn(n, generator=generator)), torch.randn(n, generator=generator)


def generated(generator: torch.Generator, n: int) -> Batch:
    points = torch.randn(n, 2, generator=generator), torch.randint(2, (n,), generator=generator)
    return points, torch.randn(n, 2, generator=generator)


OURS: dict[str, tuple[Callable[[], Metric], Callable[[torch.Generator, int], Batch]]] = {
    "accuracy": (Accuracy, classified),
    "topk": (lambda: Accuracy([1, 3]), classified),
    "cross_entropy": (CrossEntropy, classified),
    "confusion": (ConfusionMatrix, classified),
    "perplexity": (Perplexity, sequences),
    "bits": (BitsPerCharacter, sequences),
    "mse": (MeanSquaredError, numbered),
    "mae": (MeanAbsoluteError, numbered),
    "energy": (EnergyDistance, generated),
}


def gathered(metric: Metric, batches: list[Batch]) -> Metric:
    for batch, outputs in batches:
        metric.process(batch, outputs)
    return metric


def close(a: Any, b: Any, rtol: float) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, equal_nan=True)


def dealt(data: st.DataObject, make: Callable[[torch.Generator, int], Batch]) -> tuple[list[Batch], list[list[Batch]]]:
    """Some batches, and the same dealt out to two or three ranks, of which some may get none."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=7))
    batches = [make(generator, size) for size in sizes]
    ranks = data.draw(st.integers(2, 3))
    owners = data.draw(st.lists(st.integers(0, ranks - 1), min_size=len(sizes), max_size=len(sizes)))
    return batches, [
        [batch for batch, owner in zip(batches, owners, strict=True) if owner == rank] for rank in range(ranks)
    ]


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=25)
@given(data=st.data())
def test_ours(name: str, data: st.DataObject) -> None:
    """Counts merge to the bit; sums in float64 to its rounding."""
    build, make = OURS[name]
    batches, parts = dealt(data, make)
    whole = gathered(build(), batches)
    first, *others = (gathered(build(), part) for part in parts)
    for other in others:
        first.merge(other)
    for key, value in whole.state.items():
        assert value.dtype == first.state[key].dtype
        if not value.is_floating_point():
            assert torch.equal(value, first.state[key])
    close(first.compute(), whole.compute(), 1e-12)


@settings(max_examples=10)
@given(data=st.data())
def test_those_of_a_fused_group(data: st.DataObject) -> None:
    metrics = {"accuracy": Accuracy([1, 2]), "energy": EnergyDistance()}

    def of_two(generator: torch.Generator, n: int) -> Batch:
        points = torch.randn(n, 2, generator=generator), torch.randint(2, (n,), generator=generator)
        return points, torch.randn(2, n, 2, generator=generator)

    batches, parts = dealt(data, of_two)
    if not all(parts):
        return  # a member's metric has no result where nothing was processed, and the first rank is read below
    for name in metrics:
        whole = gathered(stack_metrics(metrics, 2)[name], batches)
        first, *others = (gathered(stack_metrics(metrics, 2)[name], part) for part in parts)
        for other in others:
            first.merge(other)
        close(first.compute(), whole.compute(), 1e-12)


theirs = pytest.mark.skipif(find_spec("torchmetrics") is None, reason="torchmetrics (of the `test` extra) is not here")


def named(path: str, *arguments: Any, **more: Any) -> Any:
    """A metric of torchmetrics, imported only here."""
    return get_class(f"torchmetrics.{path}")(*arguments, **more)


def collection() -> Any:
    return named(
        "MetricCollection",
        {
            "precision": named("classification.MulticlassPrecision", CLASSES),
            "recall": named("classification.MulticlassRecall", CLASSES),  # shares its state with precision
            "auroc": named("classification.MulticlassAUROC", CLASSES),  # keeps all outputs, in lists
        },
    )


def classwise() -> Any:
    return named("wrappers.ClasswiseWrapper", named("classification.MulticlassAccuracy", CLASSES, average=None))


THEIRS: dict[str, tuple[Callable[[], Any], Callable[[torch.Generator, int], Batch]]] = {
    "f1": (lambda: named("classification.MulticlassF1Score", CLASSES), classified),
    "confusion": (lambda: named("classification.MulticlassConfusionMatrix", CLASSES), classified),
    "collection": (collection, classified),
    "wrapper": (classwise, classified),
    "mse": (lambda: named("MeanSquaredError"), numbered),
    "pearson": (lambda: named("PearsonCorrCoef"), numbered),  # its ranks' states are stacked, and reduced in compute
}


@theirs
@pytest.mark.filterwarnings("ignore::UserWarning")  # theirs: what is rare in so few samples
@pytest.mark.parametrize("name", THEIRS)
@settings(max_examples=15)
@given(data=st.data())
def test_theirs(name: str, data: st.DataObject) -> None:
    build, make = THEIRS[name]
    batches, parts = dealt(data, make)
    whole = gathered(as_metric(build()), batches)
    first, *others = (gathered(as_metric(build()), part) for part in parts)
    for other in others:
        first.merge(other)
    close(first.compute(), whole.compute(), 1e-4)
    if others:
        again = gathered(first, batches[:1])  # and it goes on from there
        close(again.compute(), gathered(whole, batches[:1]).compute(), 1e-4)
        again.reset()
        close(gathered(again, batches).compute(), gathered(as_metric(build()), batches).compute(), 1e-4)


@theirs
def test_a_mean_of_ranks_is_one_of_all_of_them() -> None:
    """Two by two it would be the mean of one rank and of a mean."""
    import torchmetrics

    class Mean(torchmetrics.Metric):  # nor does it say whether its state is updated in full
        def __init__(self) -> None:
            super().__init__()
            self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")

        def update(self, outputs: Tensor, target: Tensor) -> None:
            self.mean = self.mean + (outputs - target).sum()  # type: ignore[has-type]

        def compute(self) -> Tensor:
            return self.mean

    first, *others = (as_metric(Mean()) for _ in range(3))
    for rank, value in zip((first, *others), (1.0, 2.0, 6.0), strict=True):
        rank.process((0, torch.zeros(1)), torch.full((1,), value))
    others[0].merge(others[1])
    first.merge(others[0])
    assert first.compute() == 3.0
    assert others[0].compute() == 4.0  # what was merged stays as it was


@theirs
def test_what_cannot_be_merged() -> None:
    class Duck:
        def update(self, outputs: Tensor, target: Tensor) -> None: ...
        def compute(self) -> Tensor: ...  # type: ignore[empty-body]
        def reset(self) -> None: ...

    with pytest.raises(TrainyardError, match="Duck is not a torchmetrics metric"):
        TorchMetric(Duck()).merge(TorchMetric(Duck()))
    with pytest.raises(TypeError, match="PearsonCorrCoef cannot be merged into MeanSquaredError"):
        as_metric(named("MeanSquaredError")).merge(as_metric(named("PearsonCorrCoef")))
