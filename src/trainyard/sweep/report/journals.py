"""Numbers of jobs for the report, read from their journals: one of each metric, and learning curves."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.axes import drawable
from trainyard.sweep.report.rows import JobRow
from trainyard.track import read

RUNG = "rung"
"""Series of the rungs at which a job has reported, in epochs or iterations, over the steps."""
TRAIN_LOSS = "train/loss"
POINTS = 300  # a curve is drawn about 450 pixels wide

Curve = list[tuple[int, float]]


@dataclass
class JobNumbers:
    """Numbers of a job.

    Attributes:
        values: one value of each metric. Values of the objective's split are those of the validation with the best
            objective, so that they belong together; for other metrics, the last value.
        curves: the points (step, value) of the requested metrics: at most 300 each, evenly spread, including the last
            one.
    """

    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)


def read_all(rows: Iterable[JobRow], objective: str | None, direction: Direction) -> dict[int, JobNumbers]:
    """Return the numbers of jobs, by their number: with the curves of the objective, the training loss and the rungs.

    Args:
        rows: the jobs. A job whose directory is missing, or whose journal cannot be read, has no numbers.
        objective: the objective's name; None if it is not a metric.
        direction: whether a high or a low objective is better.
    """
    names = [name for name in dict.fromkeys((objective, TRAIN_LOSS, RUNG)) if name is not None]
    return {row.num: read_numbers(row.directory, names, objective, direction) for row in rows}


def read_numbers(
    directory: Path, names: Collection[str] = (), objective: str | None = None, direction: Direction = "minimize"
) -> JobNumbers:
    """Return the numbers of one job.

    Args:
        directory: the job's directory.
        names: the metrics whose curves are kept, including `RUNG`.
        objective, direction: see `read_all`.
    """
    curves: dict[str, Curve] = {name: [] for name in names}
    last: dict[str, float] = {}
    at_best: dict[str, float] = {}
    now: dict[str, float] = {}  # the numbers at the current step
    step = -1
    best, best_step = math.inf, -1
    sign = -1.0 if direction == "maximize" else 1.0
    with contextlib.suppress(OSError):
        for record, _ in read(directory / "metrics.jsonl"):
            if record["kind"] == "metrics":
                values = record["values"]
                now = now | values if record["step"] == step else dict(values)
                step = record["step"]
                last |= values
                if objective in values and sign * values[objective] < best:
                    best, best_step = sign * values[objective], step
                if step == best_step:
                    at_best = now
                for name in curves.keys() & values.keys():
                    curves[name].append((step, values[name]))
            elif record["kind"] == "tags" and RUNG in curves and RUNG in record["tags"]:  # after the metrics there
                curves[RUNG].append((step, float(record["tags"][RUNG])))
    split = _split(objective or "")
    values = last | {name: value for name, value in at_best.items() if objective and _split(name) == split}
    drawn = {name: thinned([point for point in curve if drawable(point[1])]) for name, curve in curves.items()}
    return JobNumbers(values, drawn)


def metric_names(found: Iterable[Mapping[str, float]], objective: str | None) -> list[str]:
    """Return the metrics that are columns of a report, in addition to the objective.

    Those of the test come first, then those of the validation, then the losses of the training.

    Args:
        found: the numbers of each job, by name.
        objective: the objective's name.
    """
    names = [name for name in dict.fromkeys(name for values in found for name in values) if name != objective]
    losses = [name for name in names if _split(name) == "train" and "loss" in name]
    return [*(name for name in names if _split(name) == "test"), *(n for n in names if _split(n) == "val"), *losses]


def column(found: Mapping[int, JobNumbers], name: str) -> dict[int, float]:
    """Return one metric of the jobs that have it, by their number."""
    return {num: own.values[name] for num, own in found.items() if name in own.values}


def objectives(rows: Sequence[JobRow]) -> dict[int, float]:
    """Return the objective of the jobs that have one, by their number."""
    return {row.num: row.objective for row in rows if row.objective is not None}


def _split(name: str) -> str:
    return name.partition("/")[0]


def thinned(curve: Curve, most: int = POINTS) -> Curve:
    """Return at most `most` points of a curve, evenly spread, including the first and the last one."""
    if len(curve) <= most:
        return curve
    return [curve[round(index * (len(curve) - 1) / (most - 1))] for index in range(most)]
