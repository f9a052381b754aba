"""Jobs that differ in the seed or the fold alone are ranked by their mean."""

import itertools
import math
import statistics
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.sweep.report import JobRow, html, result_files, table, text
from trainyard.sweep.report.repeats import KEYS, Configuration, configurations


def row(num: int, overrides: dict[str, str], objective: float | None) -> JobRow:
    return JobRow(num, overrides, "failed" if objective is None else "done", objective, 1.0, Path(str(num)))


# The best job is of the rate whose mean is worse.
VALUES: dict[str, list[float | None]] = {"0.1": [0.9, 0.5, 0.4], "0.01": [0.8, 0.7, 0.6], "1": [1.0, None, 0.99]}
ROWS = [
    row(num, {"optim.lr": rate, "seed": str(seed)}, value)
    for num, (rate, seed, value) in enumerate(
        (rate, seed, value) for rate, values in VALUES.items() for seed, value in enumerate(values)
    )
]


def test_configurations_are_ranked_by_their_means() -> None:
    shown = text(table(ROWS, "val/accuracy", "maximize"))
    means, jobs = shown.split("Means over seed")
    lines = [line.split() for line in means.splitlines() if line.strip()]
    assert lines[0] == ["rank", "optim.lr", "mean", "val/accuracy", "95", "%", "std", "n"]
    assert lines[2:] == [
        ["1", "0.01", "0.7", "±0.25", "0.1", "3"],
        ["2", "0.1", "0.6", "±0.66", "0.26", "3"],
        ["-", "1", "0.995", "±0.064", "0.0071", "2/3"],  # a job of it failed
    ]
    assert [line.split()[:2] for line in jobs.splitlines() if line.strip()][2:5] == [["1", "6"], ["2", "8"], ["3", "0"]]


def test_result_files_hold_them(tmp_path: Path) -> None:
    csv, parquet = result_files.write(ROWS, tmp_path, "maximize")
    for frame in (pd.read_csv(csv), pd.read_parquet(parquet)):
        own = frame[frame["optim.lr"] == 0.01]
        assert own["mean"].tolist() == pytest.approx([0.7] * 3)
        assert own["std"].tolist() == pytest.approx([0.1] * 3)
        assert own["n"].tolist() == [3] * 3
        # Student's t for 2 degrees of freedom is 4.303 at 97.5 %.
        assert own["margin"].tolist() == pytest.approx([4.303 * 0.1 / math.sqrt(3)] * 3, rel=1e-3)


def test_result_files_ask_each_configuration_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 100,000 seeds would take the time of their square."""
    asked: list[str] = []

    def counted(name: str) -> property:
        own = vars(Configuration)[name].fget

        def value(self: Configuration) -> object:
            asked.append(name)
            return own(self)

        return property(value)

    for name in ("mean", "margin", "std", "n"):
        monkeypatch.setattr(Configuration, name, counted(name))
    rows = [row(num, {"optim.lr": "0.1", "seed": str(num)}, num / 50) for num in range(50)]
    result_files.write(rows, tmp_path, "maximize")
    assert 0 < len(asked) < 20


def test_the_page_shows_them(tmp_path: Path) -> None:
    page = html.write(ROWS, tmp_path, title="sweep", objective="val/accuracy", direction="maximize").read_text()
    assert "Means over seed" in page
    assert page.index(">0.01<") < page.index(">0.1<")


def test_folds_and_seeds_are_repeats_together() -> None:
    rows = [
        row(num, {"data.fold": str(fold), "seed": str(seed), "model": model}, num / 10)
        for num, (model, fold, seed) in enumerate(itertools.product("ab", range(3), range(2)))
    ]
    found = configurations(rows, "minimize")
    assert [(each.overrides, each.n) for each in found] == [({"model": "a"}, 6), ({"model": "b"}, 6)]
    alone = configurations([row(fold, {"data.fold": str(fold)}, fold) for fold in range(5)], "minimize")
    assert [(each.overrides, each.mean, each.n) for each in alone] == [({}, 2.0, 5)]
    assert "Means over data.fold" in text(table([row(f, {"data.fold": str(f)}, f) for f in range(2)], None, "minimize"))


def test_a_configuration_with_fewer_seeds_than_the_others_has_no_place() -> None:
    """It was raced out, or the sweep has ended before."""
    rows = [row(num, {"optim.lr": "0.1", "seed": str(num)}, 0.9) for num in range(3)]
    rows.append(row(3, {"optim.lr": "0.2", "seed": "0"}, 0.95))
    found = configurations(rows, "maximize")
    assert [(each.overrides["optim.lr"], each.count, each.is_whole) for each in found] == [
        ("0.1", "3", True),
        ("0.2", "1/3", False),
    ]
    assert found[1].margin is None


def test_nothing_is_added_without_repeats(tmp_path: Path) -> None:
    rows = [row(num, {"optim.lr": str(num)}, num) for num in range(3)]
    assert configurations(rows, "minimize") == []
    assert configurations([], "minimize") == []
    assert "Means" not in text(table(rows, None, "minimize"))
    assert "mean" not in pd.read_csv(result_files.write(rows, tmp_path, "minimize")[0]).columns


@given(
    jobs=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("01"), st.none() | st.floats(-1e6, 1e6))),
    direction=st.sampled_from(["maximize", "minimize"]),
)
def test_every_job_is_in_one_configuration(jobs, direction) -> None:  # type: ignore[no-untyped-def]
    rows = [row(num, {"model": model, "seed": seed}, value) for num, (model, seed, value) in enumerate(jobs)]
    found = configurations(rows, direction)
    if found:
        assert sorted(each.num for one in found for each in one.rows) == [each.num for each in rows]
    for each in found:
        assert not set(each.overrides) & set(KEYS)
        assert each.mean is None or each.mean == pytest.approx(statistics.fmean(each.objectives))
        assert each.std is None or math.isclose(each.std, statistics.stdev(each.objectives), rel_tol=1e-6, abs_tol=1e-6)
