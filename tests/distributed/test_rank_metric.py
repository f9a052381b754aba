"""What several ranks compute together has the bits of what one process computes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import Forked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from waiting import LIMIT

from trainyard.distributed.rank_metric import RankMetric
from trainyard.errors import TrainyardError
from trainyard.metrics import (
    Accuracy,
    ConfusionMatrix,
    CrossEntropy,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    Perplexity,
    TorchMetric,
)
from trainyard.metrics.energy_distance import EnergyDistance
from trainyard.metrics.metric import Result

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (the `test` extra has it)")

Batch = tuple[Any, Tensor]  # a batch, and the outputs for it
CLASSES = 5


class Norm(Metric):
    """A metric with a `merge` of its own: the largest output, and a sum that depends on its order."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.largest = torch.tensor(-torch.inf)
        self.total = torch.tensor(0.0)  # type: ignore[assignment, method-assign]

    def process(self, batch: Any, outputs: Tensor) -> None:
        self.largest = torch.maximum(self.largest, outputs.max())
        self.total = self.total + outputs.sum()  # type: ignore[assignment, method-assign]

    def merge(self, other: Metric) -> None:
        assert isinstance(other, Norm)
        self.largest = torch.maximum(self.largest, other.largest)
        self.total = self.total + other.total  # type: ignore[method-assign]

    def compute(self) -> Result:
        return {"largest": self.largest, "total": self.total}


class NotOfTorch:
    """An object with torchmetrics' methods that is none of its metrics: nobody knows how to merge it."""

    def __init__(self) -> None:
        self.value = torch.tensor(0.0)

    def to(self, device: Any) -> None:
        self.value = self.value.to(device)

    def reset(self) -> None:
        self.value = torch.tensor(0.0)

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.value = 0.9 * self.value + outputs.mean()

    def compute(self) -> Tensor:
        return self.value


def classified(generator: torch.Generator, n: int) -> Batch:
    target = torch.randint(CLASSES, (n,), generator=generator)
    return (torch.zeros(n), target), torch.randn(n, CLASSES, generator=generator)


def sequences(generator: torch.Generator, n: int) -> Batch:
    tokens = torch.randint(CLASSES, (n, 3), generator=generator)
    return {"x": tokens, "target": tokens}, torch.randn(n, 3, CLASSES, generator=generator)


def numbers(generator: torch.Generator, n: int) -> Batch:
    return (torch.zeros(n), torch.randn(n, generator=generator)), torch.randn(n, generator=generator)


def generated(generator: torch.Generator, n: int) -> Batch:
    points = torch.randn(n, 2, generator=generator), torch.randint(2, (n,), generator=generator)
    return points, torch.randn(n, 2, generator=generator)


def collection() -> Any:
    tm = torchmetrics.classification
    return torchmetrics.MetricCollection([tm.MulticlassPrecision(CLASSES), tm.MulticlassF1Score(CLASSES)])


def mixed_collection() -> Any:
    return torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.PearsonCorrCoef()])


def by_class() -> Any:
    return torchmetrics.ClasswiseWrapper(torchmetrics.classification.MulticlassRecall(CLASSES, average=None))


CASES: dict[str, tuple[Callable[[], Any], Callable[[torch.Generator, int], Batch]]] = {
    "accuracy": (Accuracy, classified),
    "topk": (lambda: Accuracy([1, 3]), classified),
    "cross_entropy": (CrossEntropy, classified),
    "confusion": (ConfusionMatrix, classified),
    "perplexity": (Perplexity, sequences),
    "mse": (MeanSquaredError, numbers),
    "mae": (MeanAbsoluteError, numbers),
    "energy": (EnergyDistance, generated),
    "own merge": (Norm, numbers),
    "not a torchmetrics metric": (NotOfTorch, numbers),
    "torch: whole numbers": (lambda: torchmetrics.classification.MulticlassAccuracy(CLASSES), classified),
    "torch: rounded sums": (torchmetrics.MeanSquaredError, numbers),
    "torch: lists": (lambda: torchmetrics.classification.MulticlassAUROC(CLASSES), classified),
    "torch: neither": (torchmetrics.PearsonCorrCoef, numbers),
    "torch: extremes": (lambda: torchmetrics.MeanAbsolutePercentageError(), numbers),
    "torch: collection": (collection, classified),
    "torch: mixed collection": (mixed_collection, numbers),
    "torch: wrapper": (by_class, classified),
}
every = pytest.mark.parametrize("name", CASES)


def made(name: str) -> Metric:
    metric = CASES[name][0]()
    return metric if isinstance(metric, Metric) else TorchMetric(metric)


def batches(name: str, count: int, seed: int = 0) -> list[Batch]:
    """Batches of several sizes, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 20, (count,), generator=generator).tolist()
    return [CASES[name][1](generator, n) for n in sizes]


def measured(metric: Metric, given: list[Batch]) -> Result:
    for batch, outputs in given:
        metric.process(batch, outputs)
    return metric.compute()


def same_bits(one: Result, other: Result) -> None:
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other)
        for key in one:
            same_bits(one[key], other[key])
    else:
        assert isinstance(other, Tensor)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other) or bool((one.isnan() & other.isnan()).all())


class Ranks:
    """Gathers what threads give that stand for ranks."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=LIMIT)
        self.values: list[Any] = [None] * world_size
        self.calls = 0

    def of(self, rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            self.values[rank] = value
            self.barrier.wait()
            found = list(self.values)
            if self.barrier.wait() == 0:
                self.calls += 1
            return found

        return gather

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """What the function returns on each rank; what it raises on one of them."""
        found: list[Any] = [None] * len(self.values)

        def call(rank: int) -> None:
            try:
                found[rank] = function(rank)
            except Exception as error:
                found[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(len(found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in found:
            if isinstance(result, Exception) and not isinstance(result, threading.BrokenBarrierError):
                raise result
        return found


def together(name: str, given: list[Batch], world_size: int) -> list[Result]:
    """What each rank computes, the batches taken in turns."""
    ranks = Ranks(world_size)
    metrics = [RankMetric(made(name), rank, world_size, ranks.of(rank)) for rank in range(world_size)]
    return ranks.run(lambda rank: measured(metrics[rank], given[rank::world_size]))


@every
@settings(max_examples=8)
@given(world_size=st.integers(1, 5), count=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_every_rank_has_the_bits_of_one_process(name: str, world_size: int, count: int, seed: int) -> None:
    given = batches(name, count, seed)
    alone = measured(made(name), given)
    for result in together(name, given, world_size):
        same_bits(result, alone)


def test_the_order_of_a_sum_matters() -> None:
    """Else the tests above would show nothing."""
    given = batches("torch: rounded sums", 40)
    one, other = (made("torch: rounded sums") for _ in range(2))
    values = {float(measured(one, given)), float(measured(other, given[::2] + given[1::2]))}
    assert len(values) == 2


@every
def test_after_a_reset_nothing_is_left(name: str) -> None:
    first, second = batches(name, 5, 1), batches(name, 4, 2)
    ranks = Ranks(3)
    metrics = [RankMetric(made(name), rank, 3, ranks.of(rank)) for rank in range(3)]

    def twice(rank: int) -> Result:
        measured(metrics[rank], first[rank::3])
        metrics[rank].reset()
        return measured(metrics[rank], second[rank::3])

    alone = measured(made(name), second)
    for result in ranks.run(twice):
        same_bits(result, alone)


@every
def test_more_batches_may_follow_a_result(name: str) -> None:
    given = batches(name, 7)
    ranks = Ranks(2)
    metrics = [RankMetric(made(name), rank, 2, ranks.of(rank)) for rank in range(2)]

    def twice(rank: int) -> Result:
        measured(metrics[rank], given[:4][rank::2])
        return measured(metrics[rank], given[4:][rank::2])

    for result in ranks.run(twice):
        same_bits(result, measured(made(name), given))


def test_a_result_is_gathered_once() -> None:
    ranks = Ranks(2)
    metrics = [RankMetric(Accuracy(), rank, 2, ranks.of(rank)) for rank in range(2)]
    given = batches("accuracy", 3)

    def ask(rank: int) -> Result:
        found = measured(metrics[rank], given[rank::2])
        return metrics[rank].compute() if rank else found  # one rank alone asks again

    one, other = ranks.run(ask)
    same_bits(one, other)
    assert ranks.calls == 1


@pytest.mark.parametrize("name", ["accuracy", "cross_entropy"])
def test_no_batch_at_all_is_an_error_as_it_is_alone(name: str) -> None:
    with pytest.raises(TrainyardError, match="no batch was processed"):
        together(name, [], 2)


def test_sums_of_whole_numbers_take_no_room_for_each_batch() -> None:
    for name in ("accuracy", "confusion", "torch: whole numbers"):
        sizes = set()
        for count in (2, 200):
            sent: list[bytes] = []
            metric = RankMetric(made(name), 0, 1, lambda value, sent=sent: sent.append(value) or [value])  # type: ignore[misc]
            measured(metric, batches(name, count))
            sizes.add(len(sent[0]))
        assert len(sizes) == 1, name


def test_of_a_view_only_what_is_seen_is_sent() -> None:
    outputs, target = torch.randn(100_000, CLASSES), torch.randint(CLASSES, (100_000,))
    for name in ("torch: lists", "torch: neither"):
        sent: list[bytes] = []
        metric = RankMetric(made(name), 0, 1, lambda value, sent=sent: sent.append(value) or [value])  # type: ignore[misc]
        x, y = (outputs[:4], target[:4]) if name == "torch: lists" else (outputs[:4, 0], target[:4].float())
        measured(metric, [((x, y), x)])
        assert len(sent[0]) < 100_000


def test_a_metric_that_hides_what_it_gathers_is_refused() -> None:
    class Hiding(Metric):
        total = 0.0  # type: ignore[assignment]

        def process(self, batch: Any, outputs: Tensor) -> None:
            self.total += 1

        def compute(self) -> Tensor:
            return torch.tensor(self.total)

    metric = RankMetric(Hiding(), 0, 2, lambda value: [value, value])
    with pytest.raises(TrainyardError, match="Hiding has an empty `state`"):
        measured(metric, [((torch.ones(1), torch.ones(1)), torch.ones(1))])


def test_a_batch_may_add_nothing() -> None:
    class Positive(Metric):
        def process(self, batch: Any, outputs: Tensor) -> None:
            if outputs.sum() > 0:
                self.add({"sum": outputs.sum()})

        def compute(self) -> Tensor:
            return self.total("sum")

    ranks = Ranks(2)
    metrics = [RankMetric(Positive(), rank, 2, ranks.of(rank)) for rank in range(2)]
    given = [(0, torch.tensor([value])) for value in (1.0, -1.0, -1.0, -1.0, 2.0)]
    assert ranks.run(lambda rank: measured(metrics[rank], given[rank::2])) == [3.0, 3.0]


def test_shapes_that_differ_between_ranks_are_an_error_on_all_of_them() -> None:
    class Whole(Metric):
        def process(self, batch: Any, outputs: Tensor) -> None:
            self.add({"sum": outputs.sum(0)})

        def compute(self) -> Tensor:
            return self.total("sum")

    ranks = Ranks(2)
    metrics = [RankMetric(Whole(), rank, 2, ranks.of(rank)) for rank in range(2)]
    with pytest.raises(TrainyardError, match=r"the shape \[3\] so far and \[4\]"):
        ranks.run(lambda rank: measured(metrics[rank], [(0, torch.ones(2, 3 + rank))]))


def test_it_keeps_the_prefix_and_leaves_the_metric_it_was_made_of_empty() -> None:
    inner = Accuracy(prefix="coarse")
    metric = RankMetric(inner, 0, 1)
    same_bits(measured(metric, batches("accuracy", 3)), measured(Accuracy(), batches("accuracy", 3)))
    assert metric.prefix == "coarse"
    assert not inner.state
    assert not metric.state
    with pytest.raises(TypeError, match="cannot be merged"):
        metric.merge(RankMetric(Accuracy(), 0, 1))


# --- real processes

COUNTS = (1, 2, 3, 7)


def work(rank: int, world_size: int, folder: Path) -> None:
    """One rank: every metric, over several numbers of batches, by the default group."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    found = {}
    for name in CASES:
        metric = RankMetric(made(name), rank, world_size)
        for count in COUNTS:
            metric.reset()
            found[name, count] = measured(metric, batches(name, count)[rank::world_size])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, int], Result]]:
    """What each of two processes computes: this file is their program."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        Forked(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.xdist_group("ranks with metrics")  # one worker starts them
@every
def test_processes_have_the_bits_of_one(of_processes: list[dict[tuple[str, int], Result]], name: str) -> None:
    for count in COUNTS:
        alone = measured(made(name), batches(name, count))
        for found in of_processes:
            same_bits(found[name, count], alone)


if __name__ == "__main__":
    work(int(sys.argv[1]), 2, Path(sys.argv[2]))
