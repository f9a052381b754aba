"""Jobs that differ in the seed or the fold alone are ranked by their mean."""

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.sweep.events import FIRST_CLONE
from trainyard.sweep.report import JobRow, html, result_files, table, text
from trainyard.sweep.report.curves import averaged
from trainyard.sweep.report.ranking import places, rank
from trainyard.sweep.report.repeats import KEYS, configurations, history
from trainyard.sweep.report.samples import Sample
from trainyard.track import Journal


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
    order = [line.split()[:2] for line in jobs.splitlines() if line.strip()][2:]
    assert order == [
        ["1", "3"], ["1", "4"], ["1", "5"], ["2", "0"], ["2", "1"], ["2", "2"], ["-", "6"], ["-", "8"], ["-", "7"],
    ]  # fmt: skip


def test_the_page_names_what_pairs_the_jobs(tmp_path: Path) -> None:
    pairs = [(each, each.overrides["optim.lr"], each.overrides["seed"]) for each in ROWS]
    folds = [replace(each, overrides={"optim.lr": rate, "data.fold": fold}) for each, rate, fold in pairs]
    for rows, name in ((ROWS, "seed"), (folds, "fold")):
        page = (
            html.Report(rows, tmp_path, title="t", objective="val/accuracy", direction="maximize").write().read_text()
        )
        assert f"the pairs of jobs with the same {name}, with its 95 % confidence interval" in page


def test_result_files_hold_them(tmp_path: Path) -> None:
    csv, parquet = result_files.write(ROWS, tmp_path, "maximize", "val/accuracy")
    for frame in (pd.read_csv(csv), pd.read_parquet(parquet)):
        own = frame[frame["optim.lr"] == 0.01]
        assert own["rank"].tolist() == [1] * 3
        assert own["mean/best/val/accuracy"].tolist() == pytest.approx([0.7] * 3)
        assert own["std/best/val/accuracy"].tolist() == pytest.approx([0.1] * 3)
        assert own["n"].tolist() == [3] * 3
        # Student's t for 2 degrees of freedom is 4.303 at 97.5 %.
        assert own["margin/best/val/accuracy"].tolist() == pytest.approx([4.303 * 0.1 / math.sqrt(3)] * 3, rel=1e-3)


def test_result_files_ask_each_configuration_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 100,000 seeds would take the time of their square."""
    asked: list[int] = []
    own = Sample.of

    def counted(values: Sequence[float]) -> Sample:
        asked.append(len(values))
        return own(values)

    monkeypatch.setattr(Sample, "of", counted)
    rows = [row(num, {"optim.lr": "0.1", "seed": str(num)}, num / 50) for num in range(50)]
    result_files.write(rows, tmp_path, "maximize")
    assert 0 < len(asked) < 20


def test_the_page_shows_them(tmp_path: Path) -> None:
    page = (
        html.Report(ROWS, tmp_path, title="sweep", objective="val/accuracy", direction="maximize").write().read_text()
    )
    assert "means over seed" in page
    assert page.index(">0.01<") < page.index(">0.1<")
    assert "<dt>Best configuration</dt><dd>optim.lr=0.01: 0.70 ± 0.25 (95 %, n = 3)</dd>" in page
    assert "<dt>Best job</dt>" not in page
    # Of rate 0.1: differences to the best of 0.1, -0.2 and -0.2, t = -1, p = 0.423; those of rate 1 are 0.2 and 0.39.
    table = page.partition("<h2>Configurations")[2].partition("</table>")[0]
    assert re.findall(r">([-0-9.]+ ± [0-9.]+)<", table) == ["-0.10 ± 0.43", "0.3 ± 1.2"]


def test_the_seed_is_no_parameter(tmp_path: Path) -> None:
    page = (
        html.Report(ROWS, tmp_path, title="sweep", objective="val/accuracy", direction="maximize").write().read_text()
    )
    assert "Parallel coordinates of optim.lr and val/accuracy" in page
    assert "seed against" not in page
    assert (
        page.partition('aria-label="optim.lr against')[2].partition("</svg>")[0].count("<circle") == 3
    )  # 2 of 3 jobs, too
    assert page.partition('aria-label="Importance')[2].count('class="end"') == 1
    alone = [row(num, {"seed": str(num)}, num / 10) for num in range(4)]
    html.Report(alone, tmp_path, title="s", objective=None, direction="minimize").write()
    page = (tmp_path / "report.html").read_text()
    assert "no parameter varies" in page
    assert "all jobs: 0.15 ± 0.21 (95 %, n = 4)" in page


def test_curves_of_repeats_are_a_mean_with_a_band(tmp_path: Path) -> None:
    rows = []
    for num, (rate, seed) in enumerate(itertools.product(("0.1", "0.2"), "01")):
        (tmp_path / str(num)).mkdir()
        with Journal(tmp_path / str(num)) as journal:
            journal.status("RUNNING")
            for epoch in range(1, 5 + num):
                journal.metrics(epoch, {"val/accuracy": epoch / 10 + num / 100}, epoch=epoch)
        rows.append(replace(row(num, {"lr": rate, "seed": seed}, 0.5 + num), directory=tmp_path / str(num)))
    page = html.Report(rows, tmp_path, title="s", objective="val/accuracy", direction="maximize").write().read_text()
    chart = page.partition('aria-label="Learning curves of val/accuracy"')[2].partition("</svg>")[0]
    assert re.findall(r'<polyline class="mark c\d+" data-key="(c\d)"', chart) == ["c0", "c2"]
    assert re.findall(r'<polygon class="band c\d+" data-key="(c\d)"', chart) == ["c0", "c2"]
    own = averaged([[(1, 1.0), (2, 2.0)], [(1, 3.0), (2, 5.0), (3, 9.0)]])
    assert own.mean == [(1, 2.0), (2, 3.5)]  # one job alone is no mean
    assert own.spread == pytest.approx([math.sqrt(2), 3 / math.sqrt(2)])
    assert averaged([[(1, 1.0)], []]).mean == [(1, 1.0)]


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


def test_where_every_configuration_has_lost_a_seed_those_with_most_have_places() -> None:
    rows = [
        row(num, {"optim.lr": rate, "seed": str(seed)}, None if seed else 0.1 * num)
        for num, (rate, seed) in enumerate([("0.1", 0), ("0.1", 1), ("0.2", 0), ("0.2", 1), ("0.3", 1)])
    ]
    found = configurations(rows, "maximize")
    assert [(each.overrides["optim.lr"], each.count, each.is_whole) for each in found] == [
        ("0.2", "1/2", True),
        ("0.1", "1/2", True),
        ("0.3", "0/2", False),
    ]
    going_on = configurations([*rows[:-1], replace(rows[-1], state="running")], "maximize")
    assert not any(each.is_whole for each in going_on)


def test_the_page_says_which_configurations_have_no_rank(tmp_path: Path) -> None:
    def page(rows: Sequence[JobRow]) -> str:
        return html.Report(rows, tmp_path, title="t", objective=None, direction="maximize").write().read_text()

    running = [replace(each, state="running") if each.overrides["seed"] == "2" else each for each in ROWS]
    assert "Configurations with fewer than 3 finished jobs have no rank." in page(running)
    failed = [replace(each, state="done" if each.overrides["seed"] == "0" else "failed") for each in ROWS]
    assert "Configurations without a finished job have no rank." in page(failed)
    none = page([replace(each, state="failed", objective=None) for each in ROWS])
    assert "Configurations with fewer than 3 finished jobs have no rank." in none
    assert ">best<" not in none


def test_nothing_is_added_without_repeats(tmp_path: Path) -> None:
    rows = [row(num, {"optim.lr": str(num)}, num) for num in range(3)]
    assert configurations(rows, "minimize") == []
    assert configurations([], "minimize") == []
    assert "Means" not in text(table(rows, None, "minimize"))
    assert "n" not in pd.read_csv(result_files.write(rows, tmp_path, "minimize")[0]).columns


def test_jobs_with_the_same_values_and_seed_are_not_repeats() -> None:
    """A sampler has suggested two configurations with equal values, each with its repeats."""
    rates = ("0.1", "0.1", "0.2")
    rows = [
        row(num, {"optim.lr": rate, "seed": str(seed)}, 0.1 * num)
        for num, (rate, seed) in enumerate((rate, seed) for rate in rates for seed in range(2))
    ]
    found = configurations(rows, "maximize")
    assert [[each.num for each in one.rows] for one in found] == [[4, 5], [2, 3], [0, 1]]
    assert all(each.is_whole for each in found)
    assert configurations([row(num, {"seed": "3", "x": x}, num) for num, x in enumerate("aab")], "maximize") == []


def test_a_clone_is_a_repeat_only_of_clones_with_the_same_start() -> None:
    given = [["lr=0.1", "seed=0"], ["lr=0.1", "seed=1"], ["lr=0.2", "seed=0"], ["lr=0.2", "seed=1"]]
    given += [["lr=0.1", "seed=0", "lr=0.2"], ["lr=0.1", "seed=1", "lr=0.2"], ["lr=0.2", "seed=0", "seed=5"]]
    rows = []
    for index, lines in enumerate(given):
        num = index if index < 4 else FIRST_CLONE + index - 4
        overrides = dict(line.split("=") for line in lines)
        own = history(num, lines, in_population=False)
        rows.append(replace(row(num, overrides, index / 10), history=own))
    found = configurations(rows, "maximize")
    assert [[each.num - FIRST_CLONE * (each.num >= FIRST_CLONE) for each in one.rows] for one in found] == [
        [0, 1], [2, 3], [0, 1], [2],
    ]  # fmt: skip
    assert [each.is_whole for each in found] == [True, True, True, False]


def test_members_of_a_population_are_ranked_one_by_one(tmp_path: Path) -> None:
    """Two of them have come to the limit of a range, from the same seed; two others only to the same value."""
    values = [("0.1", "3"), ("0.1", "3"), ("0.05", "1"), ("0.05", "2")]
    rows = [
        replace(row(num, {"lr": rate, "seed": seed}, value), history=history(num, [], in_population=True))
        for num, ((rate, seed), value) in enumerate(zip(values, (0.7, 0.8, 0.9, 0.6), strict=True))
    ]
    ranking = rank(rows, "maximize")
    assert [each.num for each in ranking] == [2, 1, 0, 3]
    assert list(places(ranking, "maximize")) == [1, 2, 3, 4]
    assert "Means" not in text(table(rows, None, "maximize"))
    frame = pd.read_csv(result_files.write(rows, tmp_path, "maximize")[0])
    assert frame["rank"].tolist() == [1, 2, 3, 4]
    assert "n" not in frame.columns
    page = html.Report(rows, tmp_path, title="s", objective=None, direction="maximize").write().read_text()
    assert "<dt>Best job</dt><dd>#2 lr=0.05 seed=1: 0.9</dd>" in page
    assert "<h2>Configurations" not in page
    assert "was trained with one seed" not in page


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
        assert len({row.overrides["seed"] for row in each.rows}) == len(each.rows)
        assert each.mean is None or each.mean == pytest.approx(statistics.fmean(each.objectives))
        assert each.std is None or math.isclose(each.std, statistics.stdev(each.objectives), rel_tol=1e-6, abs_tol=1e-6)
