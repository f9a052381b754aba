"""Records of a journal about a model, which identify its checkpoint and its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainyard.track import journal
from trainyard.track.lines import Record, parsed
from trainyard.track.run_info import RunInfo
from trainyard.track.shipper.logged_model import BuiltModel, build_model

EPOCH = "epoch"
"""Name in MLflow of the metric with the epoch of each evaluation."""
_EVALUATED = ("val", "test")  # sets, after which results are named: `val/accuracy`, `val/easy/accuracy`, `val_raw/loss`

Point = tuple[str, float, float, int]
"""Name, value, Unix seconds, step."""


def of_evaluation(values: Mapping[str, float]) -> bool:
    """Return whether the values of a record are results of an evaluation."""
    return any(name.startswith(_EVALUATED) for name in values)


@dataclass(frozen=True)
class PlannedModel:
    """Model that is to be logged.

    Args:
        name: the name of the model in MLflow.
        stamp: a text that distinguishes the model from others of the same run.
        step: the step at which the checkpoint was saved; None if it is not recorded.
        metrics: the results of the model.
        build: a function that returns the model.
    """

    name: str
    stamp: str
    step: int | None
    metrics: list[Point]
    build: Callable[[], BuiltModel]


def planned_model(work_dir: Path, info: RunInfo, record: Record) -> PlannedModel:
    """Return the model that a record describes, with its results from the journal."""
    checkpoint, name, step = record["checkpoint"], record.get("name", "model"), record.get("step")
    build = partial(
        build_model,
        work_dir,
        info,
        checkpoint,
        record["loader"],
        record.get("predict"),
        form=record.get("form", "pickle"),
    )
    found = {} if step is None else {point[0]: point for point in _results(work_dir / journal.FILE, step, name)}
    return PlannedModel(name, f"{checkpoint}@{record['time']}", step, [*found.values()], build)


def _results(path: Path, step: int, name: str) -> Iterator[Point]:
    """Yield the results of evaluations at a step, and the results that were recorded for a model."""
    marks = f'"step":{step},'.encode(), f'"of":{json.dumps(name)},'.encode()
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    for line in lines:
        if line.endswith(b"\n") and any(mark in line for mark in marks):
            record = parsed(line)
            if record is None or record["kind"] != "metrics":
                continue
            values, of = record["values"], record.get("of")
            if of == name or (of is None and record["step"] == step and of_evaluation(values)):
                for key, value in values.items():
                    if key.startswith(_EVALUATED):
                        yield key, value, record["time"], record["step"]
