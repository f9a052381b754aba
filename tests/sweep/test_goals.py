"""Several objectives and constraints: Pareto fronts, bounds, and what a ranking makes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.catalog.stored_sweep import StoredSweep
from trainyard.errors import ConfigError
from trainyard.sweep.goals import Constraint, Goals, fronts
from trainyard.sweep.report import JobRow, html, rank, result_files, table, text
from trainyard.sweep.report.ranking import places
from trainyard.sweep.summary import summary_tags

POINTS = st.integers(1, 3).flatmap(
    lambda size: st.lists(st.tuples(*[st.integers(0, 4)] * size) | st.tuples(*[st.floats(-9, 9)] * size), max_size=24)
)


def test_each_metric_has_the_key_that_names_it() -> None:
    bounds = (Constraint("val/loss", "<=", 1), Constraint("b", ">=", 0))
    assert Goals(("a", "b"), ("minimize", "maximize"), bounds).keys == {
        "a": "hydra.sweeper.objective", "b": "hydra.sweeper.objective", "val/loss": "hydra.sweeper.constraints",
    }  # fmt: skip
    assert Goals(("val/loss",), ("minimize",), bounds).keys == {
        "val/loss": "objective", "b": "hydra.sweeper.constraints",
    }  # fmt: skip


def dominates(one: Any, other: Any) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


@given(POINTS)
def test_fronts_are_peeled_off_one_after_another(points: list[tuple[float, ...]]) -> None:
    found = fronts(points)
    left = list(range(len(points)))
    front = 0
    while left:
        front += 1
        first = [here for here in left if not any(dominates(points[other], points[here]) for other in left)]
        assert [index for index in left if found[index] == front] == first
        left = [index for index in left if index not in first]


def test_a_constraint_is_a_bound_of_a_metric() -> None:
    most, least = Constraint.read("model/parameters <= 1e5"), Constraint.read(" val/accuracy>=0.5 ")
    assert (str(most), str(least)) == ("model/parameters <= 100000", "val/accuracy >= 0.5")
    assert [most.violation(each) for each in (1e5, 2e5, None, math.nan)] == [0, 1e5, math.inf, math.inf]
    exact = Constraint.read("size <= 123456789.25")
    assert Constraint.read(str(exact)) == exact
    assert [least.violation(each) for each in (0.75, 0.25)] == [-0.25, 0.25]


@pytest.mark.parametrize("given", ["val/loss < 1", "val/loss", "<= 3", "val/loss <= much", "val/loss <= nan", 3])
def test_a_constraint_of_another_form_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match=r"constraints: .* Expected a metric, <= or >=, and a number"):
        Constraint.read(given)


GOALS = Goals(("accuracy", "size"), ("maximize", "minimize"), (Constraint.read("size <= 100"),))


def test_what_a_job_returns_is_read_by_name_or_in_order() -> None:
    assert GOALS.metrics == ("accuracy", "size")
    whole: list[Any] = [{"size": 7, "accuracy": 0.5, "other": 1}, [0.5, 7], (0.5, 7, 9)]
    for value in whole:
        assert GOALS.measured(value) == {"accuracy": 0.5, "size": 7.0}
        assert GOALS.missing(value) == []
    lacking: list[Any] = [None, {"accuracy": "a"}, [True]]
    for value in lacking:
        assert GOALS.missing(value) == ["accuracy", "size"]
    assert GOALS.missing(0.5) == ["size"]


def test_goals_are_read_back_from_an_identity() -> None:
    one = Goals(("loss",), ("minimize",), (Constraint.read("size <= 1"),))
    for goals in (GOALS, one):
        assert Goals.of({"sampler": {}, **json.loads(json.dumps(goals.identity))}) == goals
    assert Goals.of({"direction": "minimize"}) is None


VALUES: list[Any] = [
    {"accuracy": 0.5, "size": 10},
    {"accuracy": 0.9, "size": 50},
    {"accuracy": 0.4, "size": 20},
    {"accuracy": 0.99, "size": 300},
    {"accuracy": math.nan, "size": 1},
    {"accuracy": 0.95, "size": 101},
    None,
    {"accuracy": 0.9, "size": 50},
]


def rows(folder: Path = Path()) -> list[JobRow]:
    found = []
    for num, value in enumerate(VALUES):
        row = JobRow(num, {"x": str(num)}, "done" if value else "failed", None, 1.0, folder / str(num))
        found.append(row.graded(value, GOALS))
    return found


def test_the_ranking_has_the_pareto_front_first_and_what_is_infeasible_after_it() -> None:
    order = rank(rows(), "maximize")
    assert [row.num for row in order] == [1, 7, 0, 2, 4, 5, 3, 6]
    assert list(places(order, "maximize")) == [1, 1, 1, 2, None, None, None, None]
    shown = text(table(rows(), "accuracy", "maximize"))
    assert shown.split("\n")[1].split() == ["front", "job", "x", "accuracy", "size", "time", "state"]
    assert "0.99    300   1.0 s   done, infeasible" in shown


def test_one_objective_with_a_constraint_is_ranked_by_it_among_what_is_feasible() -> None:
    goals = Goals(("accuracy",), ("maximize",), (Constraint.read("size <= 100"),))
    order = rank([each.graded(value, goals) for each, value in zip(rows(), VALUES, strict=True)], "maximize")
    assert [row.num for row in order] == [1, 7, 0, 2, 4, 5, 3, 6]
    assert list(places(order, "maximize")) == [1, 1, 3, 4, None, None, None, None]


def test_result_files_and_the_report_have_each_objective(tmp_path: Path) -> None:
    csv, _ = result_files.write(rows(tmp_path), tmp_path, "maximize")
    frame = pd.read_csv(csv)
    assert list(frame["rank"])[:4] == [1, 1, 1, 2]
    assert list(frame["accuracy"])[:3] == [0.9, 0.9, 0.5]
    assert list(frame["feasible"])[-3:-1] == [False, False]
    same: Any = {"title": "t", "objective": "accuracy", "direction": "maximize", "searched": True, "goals": GOALS}
    page = html.Report(rows(tmp_path), tmp_path, **same).write().read_text()
    for part in (
        "Pareto front of accuracy and size", "Optimization history of size", "Optimization history of accuracy",
        "size &lt;= 100", "Parameters against size", "accuracy (higher is better), size (lower is better)",
        "<dt>Pareto front</dt><dd>#1, #7, #0</dd>", "done, infeasible",
    ):  # fmt: skip
        assert part in page, part


def test_the_sweeps_own_run_names_the_front() -> None:
    tags = summary_tags(rank(rows(), "maximize"), "accuracy", "maximize", "said", "here")
    assert {key: value for key, value in tags.items() if "note" not in key} == {"pareto_front": "#1, #7, #0"}
    note = tags["mlflow.note.content"]
    assert note.startswith("**Pareto front of accuracy, size: #1, #7, #0**")
    assert "| front | job | x | accuracy | size | state |" in note
    assert "| - | #5 | 5 | 0.95 | 101 | done, infeasible |" in note


def test_a_stored_search_has_its_goals(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"kind": "proposer", "identity": {"sampler": {}, **GOALS.identity}}]
    records += [
        {"kind": "job", "num": num, "overrides": [f"x={num}"], "subdir": str(num)} for num in range(len(VALUES))
    ]
    records += [
        {"kind": "state", "num": num, "state": "done" if value else "failed", "objective": value, "seconds": 1.0}
        for num, value in enumerate(VALUES)
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in records))
    sweep = StoredSweep.read(tmp_path)
    assert (sweep.objective, sweep.direction) == ("accuracy", "maximize")
    assert repr(sweep.rows()) == repr(rows(tmp_path))
