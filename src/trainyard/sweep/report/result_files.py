"""Result files for other programs: results.csv and results.parquet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.ranking import places, rank
from trainyard.sweep.report.repeats import configurations
from trainyard.sweep.report.rows import JobRow, Value, keys, measures, parse

_OWN = ("rank", "job", "objective", "feasible", "mean", "margin", "std", "n", "seconds", "state", "error", "directory")


def write(rows: Sequence[JobRow], directory: str | Path, direction: Direction) -> tuple[Path, Path]:
    """Write `results.csv` and `results.parquet`, best job first.

    Columns: rank (empty without an objective), job, every override, objective, seconds, state, error, directory
    (relative to `directory`). Where jobs are repeats of one another (`repeats`), mean, margin (half of the width of the
    mean's 95 % confidence interval), std and n are those of the job's configuration. Jobs that are compared by more
    than their objective have a column for each of these metrics, and feasible; with several objectives, rank is the
    number of the Pareto front, and objective the first of them. A column of overrides holds numbers or bools if all its
    values are such. An override with the name of another column is called `override.<name>`.

    Args:
        rows: the jobs, in any order.
        directory: the output directory; it must exist.
        direction: whether a high or a low objective is better.

    Returns:
        The two files.
    """
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]

    ranking = rank(rows, direction)
    columns = {
        "rank": pd.array(list(places(ranking)), dtype="Int64"),
        "job": pd.array([row.num for row in ranking], dtype="int64"),
    }
    for key in keys(rows):
        values = parse([row.overrides.get(key) for row in ranking])
        name = f"override.{key}" if key in _OWN else key
        columns[_text(name)] = pd.array([_plain(value) for value in values], dtype=_dtype(values))
    columns["objective"] = pd.array([row.objective for row in ranking], dtype="float64")
    if any(row.metrics for row in ranking):
        for name in measures(ranking, None):
            columns[_text(name)] = pd.array([row.value(name) for row in ranking], dtype="float64")
        feasible = [None if row.state != "done" else not row.violation for row in ranking]
        columns["feasible"] = pd.array(feasible, dtype="boolean")
    if found := configurations(rows, direction):
        own: dict[int, tuple[float | None, float | None, float | None, int]] = {}
        for each in found:  # each statistic is computed once: a configuration may have all jobs
            own |= dict.fromkeys((row.num for row in each.rows), (each.mean, each.margin, each.std, each.n))
        for place, name in enumerate(("mean", "margin", "std", "n")):
            values_of = [own[row.num][place] for row in ranking]
            columns[name] = pd.array(values_of, dtype="int64" if name == "n" else "float64")
    columns |= {
        "seconds": pd.array([row.seconds for row in ranking], dtype="float64"),
        "state": pd.array([row.state for row in ranking], dtype="str"),
        "error": pd.array([_plain(row.error) for row in ranking], dtype="str"),
        "directory": pd.array([_plain(os.path.relpath(row.directory, directory)) for row in ranking], dtype="str"),
    }
    frame = pd.DataFrame(columns)
    csv, parquet = Path(directory, "results.csv"), Path(directory, "results.parquet")
    frame.to_csv(csv, index=False)
    frame.to_parquet(parquet, index=False)
    return csv, parquet


def _dtype(values: Sequence[Value | None]) -> str:
    kind = next((type(value) for value in values if value is not None), str)
    if kind is float or kind is str:
        return {float: "float64", str: "str"}[kind]
    nullable = None in values  # plain integers and bools cannot hold a missing value
    return {int: "Int64" if nullable else "int64", bool: "boolean" if nullable else "bool"}[kind]


def _plain(value: Value | None) -> Value | None:
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    """Replace what one of the formats cannot hold: bytes that are not UTF-8, and carriage returns."""
    return value.encode(errors="replace").decode().replace("\r", "\n")
