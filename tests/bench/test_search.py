"""`run.py --only search`: tables of learning curves, and searches that are replayed over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
FOLDERS = [str(BENCH), str(BENCH / "search")]


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(folder)


def problem(epochs: int = 9, **ends: int) -> Any:
    """Return a problem of 18 configurations, of which the one with lr 0.1 and width 32 is the best."""
    from table import CHOICES, FLOATS, INTEGERS, Parameter, Problem

    parameters = [
        Parameter("optim", CHOICES, ("adamw", "sgd")),
        Parameter("model.width", INTEGERS, (8, 32, 128)),
        Parameter("optim.lr", FLOATS, (0.001, 0.1, 1.0)),
    ]
    last = np.array([[0.5, 0.7, 0.4], [0.6, 0.9, 0.5], [0.6, 0.8, 0.3]] * 2).reshape(-1)
    last[9:] -= 0.05
    curves = last[:, None] * (1 - 0.5 ** np.arange(1, epochs + 1))
    return Problem("small", parameters, curves, np.linspace(1, 2, 18), **ends)


def test_a_point_has_the_curve_of_the_nearest_configuration(tmp_path: Path) -> None:
    from table import Problem

    own = problem()
    assert own.index({"optim": "adamw", "model.width": "17", "optim.lr": "0.02"}) == 4
    assert own.index({"optim": "sgd", "model.width": 128, "optim.lr": 7.0}) == 17
    own.save(tmp_path / "own.npz")
    again = Problem.load(tmp_path / "own.npz")
    assert (again.parameters, again.least, again.most) == (own.parameters, own.least, own.most)
    np.testing.assert_array_equal(again.values, own.values)


def test_stacks_of_curves_are_one_table_with_a_row_for_each_configuration_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import curves
    from table import problems

    grid = curves.Grid(("model=mlp",), curves.MLP, (8, 32), (64,), (1e-3, 1e-1), (1e-5,))
    monkeypatch.setattr(curves, "GRIDS", {"rings": grid})
    for number, stack in enumerate(curves.stacks(["rings"])):
        values = np.arange(6)[:, None] / 10 + number / 100 + np.zeros(curves.EPOCHS)
        np.savez(tmp_path / f"{stack.name}.npz", accuracy=values, loss=-values, seconds=0.5, cpu=1.0)
    curves.write(tmp_path, ["rings"], tmp_path / "curves.parquet")

    found = problems(tmp_path / "curves.parquet", "rings")
    assert len(found) == len(curves.SEEDS)
    assert [(each.key, each.values) for each in found[0].parameters] == [
        ("optim", ("adamw", "sgd")),
        ("model.width", (8, 32)),
        ("optim.lr", (1e-3, 1e-1)),
    ]
    point = {"optim": "sgd", "model.width": 32, "optim.lr": 0.1}
    number = next(n for n, own in enumerate(curves.stacks(["rings"])) if (own.optim, own.width) == ("sgd", 32))
    for seed, own in enumerate(found):
        assert own.curve(own.index(point)) == pytest.approx([0.3 + seed / 10 + number / 100] * curves.EPOCHS)


def test_a_search_is_replayed_without_an_epoch_that_is_trained_twice() -> None:
    from by_trainyard import METHODS
    from replay import WORKERS, Course

    own = problem(least=10, most=12)
    pieces = METHODS["random + ASHA"](own, 0)
    assert pieces == METHODS["random + ASHA"](own, 0)
    assert {piece.until for piece in pieces} == {1, 3, 9}
    epochs = sum(piece.until - piece.after for piece in pieces)
    assert 10 * own.epochs <= epochs <= 12 * own.epochs + own.epochs * WORKERS
    course = Course.of(own, pieces)
    assert len(course.times) == epochs
    assert course.twice == 0
    assert own.best - course.best[-1] == course.regret(own, epochs) <= 0.05
    assert course.times[0] <= course.time_to_near(own) <= course.times[-1]


def test_what_a_replay_has_reached_is_read_epoch_by_epoch() -> None:
    from replay import Course, Piece

    own = problem()
    course = Course.of(own, [Piece(0, 4, 0, 3, 3.5), Piece(1, 0, 0, 1, 1.0), Piece(0, 4, 1, 3, 9.0)])
    assert course.twice == 2
    assert len(course.times) == 6
    assert course.times[0] == 1.0
    assert course.best[0] == own.values[0, 0]
    assert course.best[-1] == own.values[4, 2]


def test_the_bounds_are_those_of_what_is_known_in_advance() -> None:
    from bounds import best_at_once, fastest, foresight

    own = problem()
    near = own.values >= 0.99 * own.best
    assert near.any(axis=1).sum() == 1
    at_once = (near[4].argmax() + 1) * own.seconds[4]
    assert fastest(own, 0) == best_at_once(own, 0) == at_once
    found = [foresight(own, seed) for seed in range(20)]
    assert found[0] == foresight(own, 0)
    assert min(found) == at_once, "the configuration is among the first ones"
    assert max(found) > at_once + own.seconds.min()


def test_a_table_of_means_has_intervals() -> None:
    import report
    from measure import Comparison, Table

    values = {"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}
    table = Table("t", "s", values, comparisons=[Comparison("a", "b", 0.8)], mean=True)
    assert "| a | 2.000 | -0.484 to 4.484 |" in list(report._sides(table))
    assert list(report._comparisons(table))[-1] == "| a / b | 0.500 | 0.500 to 0.500 | ≤ 0.8 | reached |"
    fewer = Table("t", "s", values | {"b": [2.0, 4.0]}, comparisons=[Comparison("a", "b", 0.8)], mean=True)
    assert list(report._comparisons(fewer))[-1] == "| a / b | 0.500 | 0.500 to 0.500 | ≤ 0.8 | reached |"
    figures = {"cases": {"search": {"tables": [vars(table) | {"comparisons": [vars(table.comparisons[0])]}]}}}
    assert report.goals(figures) == [{"name": "t: a / b", "ratio": 0.5, "low": 0.5, "high": 0.5, "goal": 0.8}]
