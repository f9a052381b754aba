"""Growth of a validation with the number of samples: memory, and time of a sample.

A `DataLoader` over an `IterableDataset` creates the samples (points of two classes) when it reads them, in batches of
256. The model is the MLP 2-64-64-2. The metrics are accuracy, mean loss and the confusion matrix. The memory is the
peak of the resident set of a new process. The time includes the creation of the samples, but not a first validation.

**Result:** neither figure grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from measure import Comparison, Session, Table, in_a_process, several_figures

BATCH = 256
METRICS = {
    "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
    "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
    "confusion": {"_target_": "trainyard.metrics.ConfusionMatrix"},
}


def tables(session: Session) -> Iterator[Table]:
    few, *more = (10_000, 100_000) if session.quick else (10_000, 100_000, 1_000_000, 10_000_000)
    sides = {named(count): partial(in_a_process, validate, count) for count in (few, *more)}
    figures, failed = several_figures(session.fewer(), sides)
    goals = {10_000_000: 1.02}
    comparisons = [Comparison(named(count), named(few), goals.get(count)) for count in more]
    yield Table("Peak memory against samples", "MB", figures.get("memory", {}), failed, comparisons)
    comparisons = [Comparison(named(count), named(few)) for count in more]
    yield Table("Validation against samples", "µs per sample", figures.get("time", {}), failed, comparisons)


def named(count: int) -> str:
    return f"{count:,} samples"


def validate(count: int) -> Mapping[str, float]:
    """Validate `count` samples twice or more; return the peak memory in MB, and the time of a sample in µs."""
    import tempfile
    from time import perf_counter

    import torch
    from work import Work

    from cases.memory import most
    from trainyard.models import Supervised
    from trainyard.runner import Runner
    from trainyard.runner.default_hooks import default_hooks

    class Points(torch.utils.data.IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
        """Batches of points, made as they are read."""

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            generator = torch.Generator().manual_seed(0)
            for first in range(0, count, BATCH):
                size = min(BATCH, count - first)
                y = torch.randint(2, (size,), generator=generator)
                yield torch.randn(size, 2, generator=generator) + y[:, None], y

    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model=Supervised(Work().net()),
            data={"val": torch.utils.data.DataLoader(Points(), batch_size=None)},
            hooks=default_hooks(),
            metrics=METRICS,
            device="cpu",
            work_dir=f"{folder}/run",
            objective="val/accuracy",
            direction="maximize",
        )
        with runner.session():
            runner.val()
            passes = max(200_000 // count, 1)
            begin = perf_counter()
            for _ in range(passes):
                runner.val()
            seconds = (perf_counter() - begin) / passes
        return {"memory": most("self"), "time": seconds / count * 1e6}
