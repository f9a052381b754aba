"""Result files for other programs: results.csv and results.parquet, with a row for each job."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainyard.files import writing
from trainyard.quoting import shell_path
from trainyard.sweep.goals import Direction
from trainyard.sweep.report.journals import JobNumbers, metric_names
from trainyard.sweep.report.ranking import places, rank
from trainyard.sweep.report.repeats import configurations
from trainyard.sweep.report.rows import JobRow, Value, keys, measures, parse


def write(
    rows: Sequence[JobRow],
    directory: str | Path,
    direction: Direction,
    objective: str | None = None,
    found: Mapping[int, JobNumbers] | None = None,
) -> tuple[Path, Path]:
    """Write `results.csv` and `results.parquet`, best job first.

    Columns: rank (empty without an objective), job, every override, the objective, metrics, seconds, state, error,
    directory (relative to `directory`). The column of the objective `val/accuracy` is `best/val/accuracy`, as in
    MLflow; without a name it is `objective`. The metrics are those of the test and the validation and the losses of the
    training, by their names. If jobs are repeats (`repeats`), `mean/…`, `std/…` and `margin/…` of the
    objective (margin: half of the width of the mean's 95 % confidence interval) and n are those of the job's
    configuration, and rank is that of the configuration. Jobs that are compared by several metrics have a column for
    each of them, and the column feasible; with several objectives, rank is the number of the Pareto front. A column of
    overrides contains numbers or bools if all of its values are numbers or bools. An override with the name of another
    column is called `override.<name>`.

    Args:
        rows: the jobs, in any order.
        directory: the output directory; it must exist.
        direction: whether a high or a low objective is better.
        objective: the objective's name; None if it has none.
        found: the numbers of the jobs, by their number (`journals.read_all`).

    Returns:
        The two files.

    Raises:
        DiskFullError: no space is left.
    """
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]

    ranking = rank(rows, direction)
    measured = _measured(ranking, direction, objective, found or {})
    own: dict[str, Any] = {
        "rank": pd.array(list(places(ranking, direction)), dtype="Int64"),
        "job": pd.array([row.num for row in ranking], dtype="int64"),
    }
    last = {
        "seconds": pd.array([row.seconds for row in ranking], dtype="float64"),
        "state": pd.array([row.state for row in ranking], dtype="str"),
        "error": pd.array([_plain(row.error) for row in ranking], dtype="str"),
        "directory": pd.array([_plain(os.path.relpath(row.directory, directory)) for row in ranking], dtype="str"),
    }
    taken = {*own, *measured, *last}
    for key in keys(rows):
        values = parse([row.overrides.get(key) for row in ranking])
        name = f"override.{key}" if key in taken else key
        own[_text(name)] = pd.array([_plain(value) for value in values], dtype=_dtype(values))
    kinds = {"n": "int64", "feasible": "boolean"}
    own |= {_text(name): pd.array(column, dtype=kinds.get(name, "float64")) for name, column in measured.items()}
    frame = pd.DataFrame(own | last)
    csv, parquet = Path(directory, "results.csv"), Path(directory, "results.parquet")
    then = f"`trainyard sweep report {shell_path(directory)}` writes the result files"
    with writing(csv, then=then):
        frame.to_csv(csv, index=False)
    with writing(parquet, then=then):
        parquet.write_bytes(frame.to_parquet(index=False))  # in the errors of pyarrow, the system's text is missing
    return csv, parquet


def objective_column(objective: str | None) -> str:
    """Return the name of the objective's column."""
    return "objective" if objective is None else f"best/{objective}"


def _measured(
    ranking: Sequence[JobRow], direction: Direction, objective: str | None, found: Mapping[int, JobNumbers]
) -> dict[str, list[Any]]:
    """Return the columns of measured numbers."""
    several = any(row.metrics for row in ranking)
    named = measures(ranking, None) if several else []
    columns: dict[str, list[Any]] = {name: [row.value(name) for row in ranking] for name in named}
    if not several:
        columns[objective_column(objective)] = [row.objective for row in ranking]
    for name in metric_names([own.values for own in found.values()], objective):
        if name not in columns:
            columns[name] = [found[row.num].values.get(name) if row.num in found else None for row in ranking]
    if several:
        columns["feasible"] = [None if row.state != "done" else not row.violation for row in ranking]
    samples = {row.num: each.sample for each in configurations(ranking, direction) for row in each.rows}
    if samples:
        own = [samples[row.num] for row in ranking]
        name = objective_column(objective)
        columns[f"mean/{name}"] = [each.mean for each in own]
        columns[f"std/{name}"] = [each.std for each in own]
        columns[f"margin/{name}"] = [each.margin for each in own]
        columns["n"] = [each.n for each in own]
    return columns


def _dtype(values: Sequence[Value | None]) -> str:
    kind = next((type(value) for value in values if value is not None), str)
    if kind is float or kind is str:
        return {float: "float64", str: "str"}[kind]
    nullable = None in values  # plain integers and bools cannot hold a missing value
    return {int: "Int64" if nullable else "int64", bool: "boolean" if nullable else "bool"}[kind]


def _plain(value: Value | None) -> Value | None:
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    """Replace characters that one of the formats does not support: bytes that are not UTF-8, and carriage returns."""
    return value.encode(errors="replace").decode().replace("\r", "\n")
