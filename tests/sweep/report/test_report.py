import itertools
import math
import os
import re
import resource
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kruskal  # type: ignore[import-untyped,unused-ignore]

from trainyard.files import DiskFullError
from trainyard.sweep.goals import Constraint, Direction, Goals
from trainyard.sweep.report import JobRow, html, rank, result_files, table, text
from trainyard.sweep.report.axes import Scale, of_parameter
from trainyard.sweep.report.charts import history
from trainyard.sweep.report.export import Comparison, as_csv, as_latex
from trainyard.sweep.report.importance import importance, importance_in_search
from trainyard.sweep.report.items import of_jobs, shades
from trainyard.sweep.report.journals import POINTS, RUNG, read_all, read_numbers
from trainyard.sweep.report.rows import duration, in_order, number, parse, shortened, varying, with_spread
from trainyard.sweep.report.tables import _metrics_note
from trainyard.track import Journal

SOME = settings(max_examples=100)
STATES = st.sampled_from(["done", "done", "failed", "interrupted", "timeout", "lost"])
OBJECTIVES = st.none() | st.floats() | st.sampled_from([0.5, 0.75])
DIRECTIONS = st.sampled_from(["maximize", "minimize"])
BEST = "test/… is measured with the best checkpoint, if there is one"
VOID = {"meta", "link", "br", "img", "input", "hr"}


@st.composite
def sweeps(draw: st.DrawFn, *further: str) -> list[JobRow]:
    texts = st.text(max_size=12) | st.sampled_from(
        ["1", "1e-3", "true", "[1,2]", "<b>", "null", "nan", "9" * 30, "0", "0.0"]
    )
    overrides = st.dictionaries(st.sampled_from(["optim.lr", "model", "state", "a&b", *further]), texts)
    outcomes = draw(st.lists(st.tuples(overrides, STATES, OBJECTIVES, st.none() | st.floats(0, 1e6)), max_size=12))
    rows = [
        JobRow(num, varied, state, objective, seconds, Path("/nowhere", str(num)), None if state == "done" else "why")
        for num, (varied, state, objective, seconds) in enumerate(outcomes)
    ]
    return draw(st.permutations(rows))


def row(num: int, overrides: dict[str, str], objective: float | None = None, directory: Path = Path("none")) -> JobRow:
    state, error = ("done", None) if objective is not None else ("failed", "RuntimeError: <no> & [never]")
    return JobRow(num, overrides, state, objective, 1.5 + num, directory / str(num), error)


def grid(root: Path, axes: dict[str, Sequence[str]], epochs: int = 5) -> list[JobRow]:
    """A finished sweep over every combination, with the journals that its jobs leave."""
    rows = []
    for num, values in enumerate(itertools.product(*axes.values())):
        (root / str(num)).mkdir()
        best = 0.5 + 0.4 / (1 + num)
        with Journal(root / str(num)) as journal:
            journal.status("RUNNING")
            for epoch in range(1, epochs + 1):
                journal.metrics(10 * epoch, {"val/accuracy": best - 1 / (epoch + 3)}, epoch=epoch)
                journal.metrics(10 * epoch, {"train/loss": 2 / epoch}, epoch=epoch)
            journal.status("FINISHED")
        rows.append(row(num, dict(zip(axes, values, strict=True)), best, root))
    return rows


class Page(HTMLParser):
    """Checks that every tag is closed, and collects what the tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def jobs(self, tag: str) -> list[str | None]:
        given = "data-job" if tag == "tr" else "data-key"
        return [attributes[given] for name, attributes in self.tags if name == tag and given in attributes]


def page_of(rows: Sequence[JobRow], directory: Path, direction: Direction = "maximize", title: str = "Sweep") -> Page:
    source = (
        html.Report(rows, directory, title=title, objective="val/accuracy", direction=direction).write().read_text()
    )
    assert not re.search(r"https?:|//\w|url\(|@import|<link|<img|<iframe|src=", source)
    page = Page(source)
    assert sorted(page.jobs("tr"), key=str) == sorted((str(each.num) for each in rows), key=str)
    assert "nan" not in " ".join(str(attributes.get("points", "")) for _, attributes in page.tags)
    return page


@SOME
@given(rows=sweeps(), direction=DIRECTIONS)
def test_rank_is_a_sorted_permutation(rows: list[JobRow], direction: Direction) -> None:
    ranking = rank(rows, direction)
    assert sorted(each.num for each in ranking) == sorted(each.num for each in rows)
    for before, after in itertools.pairwise(ranking):
        if (before.state == "done") != (after.state == "done"):
            assert before.state == "done"
            continue
        missing = [each.objective is None or math.isnan(each.objective) for each in (before, after)]
        if any(missing):
            assert missing != [True, False]
            assert missing != [True, True] or before.num < after.num
        elif before.objective == after.objective:
            assert before.num < after.num
        else:
            assert before.objective is not None
            assert after.objective is not None
            assert (before.objective > after.objective) == (direction == "maximize")


@settings(max_examples=30)
@given(rows=sweeps(), direction=DIRECTIONS)
def test_the_history_of_a_search_has_the_finished_jobs_and_a_line_that_never_gets_worse(
    rows: list[JobRow], direction: Direction
) -> None:
    ranked = [each for each in rows if each.ranked]
    if not ranked:
        return
    items = of_jobs(rank(rows, direction))
    page = Page(history(items, "x", direction, shades(items, direction)))
    drawable = [
        str(each.num) for each in sorted(ranked, key=lambda each: each.num) if math.isfinite(each.objective or 0)
    ]
    assert [num for num in page.jobs("circle") if num in drawable] == page.jobs("circle")
    heights = [
        (float(attributes["y1"] or 0), float(attributes["y2"] or 0))
        for name, attributes in page.tags
        if name == "line" and attributes["class"] == "median"
    ]
    for before, after in heights:  # pixels from the top
        assert after <= before if direction == "maximize" else after >= before
    for (_, end), (start, _) in itertools.pairwise(heights):
        assert end == start


def test_a_search_has_a_history_and_a_grid_has_none(tmp_path: Path) -> None:
    rows = grid(tmp_path, {"optim.lr": ["0.1", "0.01", "0.001"]})
    for searched in (True, False):
        file = html.Report(
            rows, tmp_path, title="s", objective="val/accuracy", direction="maximize", searched=searched
        ).write()
        assert ("Optimization history of val/accuracy" in file.read_text()) == searched


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0.00981271032514992", "0.00981271"),
        ("-1234567.891", "-1.23457e6"),
        ("1e-4", "1e-4"),
        ("1234567", "1234567"),
        ("[128]", "[128]"),
        ("inf", "inf"),
    ],
)
def test_a_long_number_of_a_setting_is_rounded(value: str, shown: str) -> None:
    assert shortened(value) == shown


def test_table_shows_what_varies() -> None:
    lrs = {0: ("0.1", 0.8), 1: ("0.01", 0.9), 2: ("0.001", None), 3: ("1e-4", 0.8)}
    rows = [row(num, {"optim.lr": lr, "data": "digits"}, value) for num, (lr, value) in lrs.items()]
    shown = text(table(rows, "val/accuracy", "maximize"))
    assert "\x1b" not in shown
    head, _, *lines = [line.split() for line in shown.splitlines() if line.strip()]
    assert head == ["rank", "job", "optim.lr", "val/accuracy", "time", "state"]
    assert [line[:4] for line in lines] == [
        ["1", "1", "0.01", "0.9"],
        ["2", "0", "0.1", "0.8"],
        ["2", "3", "1e-4", "0.8"],
        ["-", "2", "0.001", "-"],
    ]


def test_table_keeps_brackets_and_fits() -> None:
    rows = [row(num, {"model.hidden": f"[bold,{num}]"}, float(num)) for num in range(30)]
    shown = text(table(rows, "[red]loss", "minimize"))
    assert "[bold,0]" in shown
    assert "[red]loss" in shown
    assert "[bold,20]" not in shown
    assert "Best 20 of 30 jobs" in shown
    assert "[bold,29]" in text(table(rows, None, "minimize", limit=None))
    assert max(map(len, text(table(rows, "loss", "minimize"), width=40).splitlines())) <= 40


@SOME
@given(rows=sweeps(), direction=DIRECTIONS)
def test_tables_round_trip(rows: list[JobRow], direction: Direction, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tables")
    csv, parquet = result_files.write(rows, folder, direction, "val/accuracy")
    ranking = rank(rows, direction)
    for frame in (pd.read_parquet(parquet), pd.read_csv(csv)):
        assert list(frame.columns[:2]) == ["rank", "job"]
        assert list(frame["job"]) == [each.num for each in ranking]
        assert list(frame["state"]) == [each.state for each in ranking]
        for written, each in zip(frame["best/val/accuracy"], ranking, strict=True):
            wanted = math.nan if each.objective is None else each.objective
            assert written == pytest.approx(wanted, nan_ok=True, rel=1e-12)
        assert list(frame["rank"].notna()) == [each.ranked for each in ranking]


@pytest.mark.parametrize(("room", "name"), [(10, "results.csv"), (1000, "results.parquet")])
def test_a_full_disk_is_named_with_the_result_file(room: int, name: str, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
    then = re.escape(f"then `trainyard sweep report {tmp_path}` writes the result files.")
    try:
        with pytest.raises(DiskFullError, match=rf"{name} could not be written: File too large\. .* {then}"):
            result_files.write([row(0, {"optim.lr": "1"}, 0.5)], tmp_path, "maximize")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_tables_hold_numbers(tmp_path: Path) -> None:
    values = [("1", "1e-3", "true", "a"), ("2", "1", "False", "2")]
    names = ("size", "lr", "flag", "state")
    rows = [row(num, dict(zip(names, each, strict=True)), 0.5, tmp_path) for num, each in enumerate(values)]
    for file, read in zip(result_files.write(rows, tmp_path, "maximize"), (pd.read_csv, pd.read_parquet), strict=True):
        frame = read(file)
        assert list(frame["size"]) == [1, 2]
        assert list(frame["lr"]) == [0.001, 1.0]
        assert list(frame["flag"]) == [True, False]
        assert list(frame["override.state"]) == ["a", "2"]
        assert list(frame["directory"].astype(str)) == ["0", "1"]
        assert [frame[name].dtype.kind for name in ("size", "lr", "flag")] == ["i", "f", "b"]


def test_columns_are_parsed_whole() -> None:
    assert parse(["1", None, "-2"]) == [1, None, -2]
    assert parse(["1", "1e-3", ".5", "inf"]) == [1.0, 0.001, 0.5, math.inf]
    assert parse(["true", "False"]) == [True, False]
    for texts in (["1", "a"], ["true", "1"], ["007"], ["9" * 30, "x"], [""], ["1 "], ["٣"]):
        assert parse(texts) == texts
    assert parse(["9" * 30]) == [1e30]
    rows = [row(0, {"a": "1", "b": "2"}), row(1, {"a": "1", "b": "3", "c": "4"})]
    assert varying(rows) == ["b", "c"]
    assert varying(rows[:1]) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.97333, "0.9733"), (1e-4, "0.0001"), (1.5e-7, "1.5e-7"), (1e12, "1e12"), (120000.0, "120000"), (None, "-")],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("mean", "spread", "shown"),
    [
        (0.98891, 0.00559, ("0.9889", "0.0056")),
        (123.4, 12.2, ("123", "12")),
        (0.5, 0.0, ("0.5", "0")),
        (0.5, None, ("0.5", "")),
        (None, None, ("-", "")),
        (1e-12, 1e-14, ("1e-12", "1e-14")),
        (math.inf, math.nan, ("inf", "nan")),
    ],
)
def test_means_have_the_decimals_of_their_spread(mean: float, spread: float, shown: tuple[str, str]) -> None:
    assert with_spread(mean, spread) == shown


def test_lists_of_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    texts = ["[128]", "[16]", "mlp", "[16,8]", "[2e1]", "0.1", "1e-2", "[]"]
    assert in_order([*texts, None]) == ["1e-2", "0.1", "[16]", "[16,8]", "[2e1]", "[128]", "[]", "mlp"]
    assert of_parameter("hidden", ["[128]", "[16]", "[32]"]).places == pytest.approx([5 / 6, 1 / 6, 0.5])
    rows = [row(num, {"hidden": text}, num / 10, tmp_path) for num, text in enumerate(["[128]", "[16]", "[32]"])]
    page_of(rows, tmp_path)
    cells = re.findall(r'data-value="(\d+)">(\[.*?\])<', (tmp_path / "report.html").read_text())
    assert sorted(cells) == [("0", "[16]"), ("1", "[32]"), ("2", "[128]")]


def test_durations() -> None:
    assert [duration(value) for value in (None, 0.04, 59.96, 185, 7200 + 7 * 60)] == [
        "-", "0.0 s", "1 min 00 s", "3 min 05 s", "2 h 07 min",
    ]  # fmt: skip


@SOME
@given(values=st.lists(st.none() | st.floats()))
def test_every_number_has_its_place(values: list[float | None]) -> None:
    scale = Scale.over(values)
    places = [scale.place(value) for value in values]
    assert all(place is None or -1e-6 <= place <= 1 + 1e-6 for place in places)
    ticks = scale.ticks()
    assert len(ticks) <= 14
    assert all(-1e-6 <= tick.place <= 1 + 1e-6 for tick in ticks)
    known = sorted((value, place) for value, place in zip(values, places, strict=True) if None not in (value, place))
    assert [place for _, place in known] == sorted(place for _, place in known)  # type: ignore[type-var]


NUMBERS = st.sampled_from(["0", "0.0", "-0", "1", "-1", "1e-3", "1e300", "-1e-5", "1e-320", "inf"])


@SOME
@given(texts=st.lists(st.none() | NUMBERS, max_size=6))
def test_every_parameter_has_an_axis(texts: list[str | None]) -> None:
    """Zeros alone, too: jobs of a sweep that was interrupted after its first seed."""
    places = of_parameter("weight_decay", texts).places
    assert len(places) == len(texts)
    assert all(place is None or -1e-6 <= place <= 1 + 1e-6 for place in places)


def test_axis_follows_the_values() -> None:
    assert of_parameter("lr", ["1e-4", "1e-3", "1e-2"]).places == pytest.approx([0, 0.5, 1])
    assert of_parameter("size", ["16", "32", "48"]).places == [0, 0.5, 1]
    decay = of_parameter("decay", ["1e-2", "0", None, "1e-5"])  # neither linear nor logarithmic
    assert decay.places == pytest.approx([5 / 6, 1 / 6, None, 0.5])
    assert [tick.label for tick in decay.ticks] == ["0", "1e-5", "1e-2"]
    assert of_parameter("model", ["mlp", "cnn"]).places == [0.75, 0.25]


def test_importance_finds_the_parameter_that_decides() -> None:
    points = list(itertools.product(range(4), range(3)))
    rows = [row(num, {"a": str(a), "b": "xyz"[b], "id": f"job{num}"}, float(a)) for num, (a, b) in enumerate(points)]
    rows.append(row(99, {"a": "0", "b": "x", "id": "bad"}))
    assert importance(rows, "a") == pytest.approx(1)
    assert importance(rows, "b") == 0
    assert importance(rows, "id") is None
    assert importance(rows[:3], "a") is None
    assert importance([row(num, {"a": "12"[num % 2]}, 0.5) for num in range(8)], "a") == 0
    drawn = [row(num, {"lr": str(num / 64), "other": str(num * 37 % 64 / 64)}, (num - 32) ** 2) for num in range(64)]
    assert (importance(drawn, "lr") or 0) > 0.9
    assert (importance(drawn, "other") or 0) < 0.3


def test_importance_is_the_effect_size_of_kruskal_and_wallis() -> None:
    drawn = Random(0)
    rows = [row(num, {"model": "abcd"[num % 4]}, round(drawn.random() + 0.3 * (num % 4), 1)) for num in range(24)]
    h = kruskal(*([each.objective for each in rows[first::4]] for first in range(4))).statistic
    assert importance(rows, "model") == pytest.approx((h - 4 + 1) / (24 - 4))


def test_curves_are_thinned_and_end_at_the_end(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for step in range(1, 1001):
            journal.metrics(step, {"loss": math.nan if step == 500 else 1 / step, "other": 1.0})
    curve = read_numbers(tmp_path, ["loss", "absent"]).curves
    assert len(curve["loss"]) == POINTS
    assert (curve["loss"][0], curve["loss"][-1]) == ((1, 1.0), (1000, 0.001))
    assert curve["absent"] == []
    assert read_numbers(tmp_path / "gone", ["loss"]).curves == {"loss": []}


def test_page_of_a_sweep(tmp_path: Path) -> None:
    rows = grid(tmp_path, {"model": ["mlp", "cnn"], "optim.lr": ["1e-4", "1e-3", "1e-2"], "width": ["0", "1"]})
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "metrics.jsonl").touch()
    rows += [row(12, {"model": "mlp", "optim.lr": "1"}, None, tmp_path), row(13, {"model": "vit"}, None, tmp_path)]
    page = page_of(rows, tmp_path)
    words = " ".join(page.words)
    assert "14 (12 done, 2 failed)" in words
    assert "#0 model=mlp optim.lr=1e-4 width=0: 0.9" in words
    assert len(page.jobs("polyline")) == 3 * 12  # two learning curves and the parallel coordinates
    assert len(page.jobs("circle")) == 3 * 12
    assert {name for name, _ in page.tags} >= {"svg", "rect", "table", "script", "style"}
    links = {attributes["href"] for name, attributes in page.tags if name == "a"}
    assert links == {f"./{num}/" for num in range(14)}
    assert "trained with one seed" in words
    assert "A horizontal bar marks the median of the jobs with the same value." in words
    before = (tmp_path / "report.html").read_bytes()
    page_of(rows[::-1], tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_the_advice_on_seeds_fits_the_sweep(tmp_path: Path) -> None:
    rows = grid(tmp_path, {"optim.lr": ["1e-4", "1e-3"]})
    goals = Goals(("val/accuracy",), ("maximize",), (Constraint.read("val/loss <= 1"),))

    def page(searched: bool, goals: Goals | None = None) -> str:
        own = html.Report(
            rows, tmp_path, title="t", objective="val/accuracy", direction="maximize", searched=searched, goals=goals
        ).write()
        return own.read_text()

    assert "Several seeds (<code>'seed=range(5)'</code>)" in page(searched=False)
    assert "Several seeds (<code>hydra.sweeper.repeats=5</code>)" in page(searched=True)
    assert "Several seeds" not in page(searched=True, goals=goals), "repeats are not supported"
    rows = [replace(row, history=f"#{row.num}") for row in rows]
    assert "Several seeds" not in page(searched=False), "no member of a population is a repeat"


def test_without_a_seed_there_is_no_advice_on_seeds(tmp_path: Path) -> None:
    same: Any = {"title": "t", "objective": "val/accuracy", "direction": "maximize"}
    rows = grid(tmp_path, {"optim.lr": ["1e-4", "1e-3"]})
    assert "one seed" in html.Report(rows, tmp_path, **same).write().read_text()
    assert "seed" not in html.Report(rows, tmp_path, **same, has_seed=False).write().read_text()


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ("val", f"{BEST}; val/… belongs to the validation with the best objective; train/… is the last value."),
        ("train", f"{BEST}; val/… is the last value; train/… belongs to the point with the best objective."),
        ("objective", "test/… is the last value; val/… is the last value; train/… is the last value."),
    ],
)
def test_the_page_says_which_values_of_metrics_it_shows(split: str, told: str) -> None:
    assert _metrics_note(split) == told


def test_failures_are_listed_by_their_reason(tmp_path: Path) -> None:
    rows = [row(num, {"optim.lr": str(num)}, None if num else 0.5, tmp_path) for num in range(3)]
    rows.append(JobRow(3, {"optim.lr": "3"}, "timeout", None, 9.0, tmp_path / "3", "took longer than 10 s"))
    source = (page_of(rows, tmp_path), (tmp_path / "report.html").read_text())[1]
    section = source.partition("<h2>Jobs that did not finish</h2>")[2].partition("</table>")[0]
    assert re.findall(r'<div class="error">(.*?)</div>', section) == [
        "RuntimeError: &lt;no&gt; &amp; [never]",
        "took longer than 10 s",
    ]
    assert re.findall(r">(#\d)<", section) == ["#1", "#2", "#3"]
    page_of(rows[:1], tmp_path)
    assert "did not finish" not in (tmp_path / "report.html").read_text()


def test_jobs_have_their_metrics_as_columns(tmp_path: Path) -> None:
    """Those of the validation are of the one with the best objective; of the rest the last ones."""
    rows = [row(num, {"optim.lr": str(num)}, 0.9, tmp_path) for num in range(2)]
    (tmp_path / "1").mkdir()
    with Journal(tmp_path / "1") as journal:
        journal.status("RUNNING")
        for epoch, (accuracy, loss) in enumerate([(0.5, 3.0), (0.9, 2.0), (0.6, 1.0)], 1):
            journal.metrics(epoch, {"train/loss": 10.0 + epoch, "train/lr": 0.1}, epoch=epoch)
            journal.metrics(epoch, {"val/loss": loss}, epoch=epoch)
            journal.metrics(epoch, {"val/accuracy": accuracy}, epoch=epoch)
        journal.metrics(3, {"test/accuracy": 0.8}, epoch=3)
    found = read_all(rows, "val/accuracy", "maximize")
    csv, _ = result_files.write(rows, tmp_path, "maximize", "val/accuracy", found)
    frame = pd.read_csv(csv)
    assert list(frame.columns)[3:7] == ["best/val/accuracy", "test/accuracy", "val/loss", "train/loss"]
    own = frame[frame["job"] == 1].iloc[0]
    assert list(own[list(frame.columns)[3:7]]) == [0.9, 0.8, 2.0, 13.0]
    page_of(rows, tmp_path)
    heads = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", (tmp_path / "report.html").read_text())
    assert heads == [
        "rank", "job", "optim.lr", "val/accuracy", "test/accuracy", "val/loss", "train/loss", "time", "state",
    ]  # fmt: skip


def test_a_page_has_the_best_jobs_of_a_large_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "SHOWN", 5)
    rows = [row(num, {"optim.lr": str(num)}, num / 10, tmp_path) for num in range(9)]
    html.Report(rows, tmp_path, title="s", objective="val/accuracy", direction="maximize").write()
    page = Page((tmp_path / "report.html").read_text())
    assert page.jobs("tr") == ["8", "7", "6", "5", "4"]
    words = " ".join(page.words)
    assert "The table shows the best 5 of 9 jobs; results.csv contains all jobs." in words
    assert "Tables and charts show the best 5 of 9 jobs; results.csv contains all jobs." in words
    rows = [row(num, {"lr": str(num % lrs), "seed": str(num // lrs)}, 0.1) for lrs in (4,) for num in range(8)]
    html.Report(rows, tmp_path, title="s", objective="val/accuracy", direction="maximize", searched=True).write()
    words = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "Tables and charts show" not in words, "they show all four configurations"
    assert "The best 5 finished jobs in the order of their numbers." in words


def test_page_escapes_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\"'&"
    rows = [row(num, {evil: f"{evil}{num}"}, num / 10, tmp_path / evil.replace("/", ":")) for num in range(3)]
    rows.append(JobRow(3, {evil: "x"}, "failed", None, None, tmp_path / os.fsdecode(b"\xff?#%"), evil))
    page = page_of(rows, tmp_path, title=evil)
    assert sum(name == "script" for name, _ in page.tags) == 1
    assert evil in page.words
    result_files.write(rows, tmp_path, "maximize")


@pytest.mark.parametrize("objective", [0.5, None, math.nan, math.inf])
def test_page_of_one_job(tmp_path: Path, objective: float | None) -> None:
    page = page_of([row(7, {"model": "mlp"}, objective, tmp_path)], tmp_path)
    assert any("no parameter varies" in words for words in page.words)
    assert page_of([], tmp_path).jobs("tr") == []


def test_page_where_all_failed(tmp_path: Path) -> None:
    page = page_of([row(num, {"optim.lr": f"1e-{num}"}, None, tmp_path) for num in range(5)], tmp_path)
    words = " ".join(page.words)
    assert "none finished with an objective" in words
    assert "No job has recorded val/accuracy or train/loss." in words


@pytest.mark.parametrize("names", [("val/accuracy",), ("val/accuracy", "val/loss")])
def test_page_where_no_job_is_feasible(names: tuple[str, ...], tmp_path: Path) -> None:
    every: list[Direction] = ["maximize", "minimize"]
    goals = Goals(names, tuple(every[: len(names)]), (Constraint.read("val/loss <= 1"),))
    measured = {"val/accuracy": 0.5, "val/loss": 2.0}
    rows = [row(num, {"optim.lr": f"1e-{num}"}, 0.5, tmp_path).graded(measured, goals) for num in range(3)]
    same = {"title": "t", "objective": "val/accuracy", "direction": "maximize", "goals": goals}
    words = " ".join(Page(html.Report(rows, tmp_path, **same).write().read_text()).words)
    assert f"{'Pareto front' if names[1:] else 'Best job'} no finished job is feasible" in words
    assert "fewer than two feasible jobs finished with an objective." in words
    rows = [each.graded(measured | {"val/loss": num / 2}, goals) for num, each in enumerate(rows)]
    page = html.Report([*rows, replace(rows[0], num=3, violation=1.0)], tmp_path, **same, searched=True).write()
    words = " ".join(Page(page.read_text()).words)
    assert "One line for each feasible job." in words
    assert "The feasible jobs in the order of their numbers." in words


@settings(max_examples=50)
@given(rows=sweeps("seed"), direction=DIRECTIONS)
def test_page_of_anything(rows: list[JobRow], direction: Direction, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("page")
    page_of(rows, folder, direction)
    result_files.write(rows, folder, direction, "val/accuracy")
    table = Comparison.of(rows, None, direction, {})
    assert len(as_csv(table, None).splitlines()) >= 1 + len(table.configurations)
    assert as_latex(table).count(r"\\") >= len(table.configurations)


def test_diverged_jobs_do_not_flatten_the_rest(tmp_path: Path) -> None:
    rows = [row(num, {"lr": str(num + 1)}, 0.1 * num + 0.1, tmp_path) for num in range(12)] + [
        row(12, {"lr": "13"}, 1e9)
    ]
    page = page_of(rows, tmp_path, "minimize")
    assert any("Number of finished jobs whose objective" in words and "the others: 1." in words for words in page.words)
    heights = {str(attributes["cy"]) for name, attributes in page.tags if name == "circle"}
    assert len(heights) == 12
    assert not any("A horizontal bar" in words for words in page.words), "no two jobs have the same value"


def test_page_of_256_jobs(tmp_path: Path) -> None:
    axes = {"optim.lr": [f"1e-{n}" for n in range(1, 9)], "model.width": [str(2**n) for n in range(8)], "model": "abcd"}
    rows = grid(tmp_path, axes, epochs=30)
    page = page_of(rows, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 5e6
    assert len(page.jobs("polyline")) == 3 * 256
    coloured = [attributes for _, attributes in page.tags if re.search(r"\bc\d", str(attributes.get("class")))]
    assert len({attributes["data-key"] for attributes in coloured if "data-key" in attributes}) == 32


def test_learning_curves_show_the_rungs_and_where_jobs_were_pruned(tmp_path: Path) -> None:
    rows = [
        JobRow(0, {"x": "1"}, "done", 0.9, 1.0, tmp_path / "0"),
        JobRow(1, {"x": "2"}, "pruned", 0.4, 1.0, tmp_path / "1", "pruned at rung 1"),
    ]
    for row, epochs in zip(rows, (9, 1), strict=True):
        row.directory.mkdir()
        with Journal(row.directory) as journal:
            journal.status("RUNNING")
            for epoch in range(1, epochs + 1):
                journal.metrics(20 * epoch, {"val/accuracy": epoch / 10}, epoch=epoch)
                if epoch in (1, 3):
                    journal.tags({"rung": epoch})
    assert read_numbers(tmp_path / "0", [RUNG]).curves == {RUNG: [(20, 1.0), (60, 3.0)]}
    same = {"title": "t", "objective": "val/accuracy", "direction": "maximize"}
    page = html.Report(rows, tmp_path, **same, searched=True).write().read_text()
    chart = page.partition("Learning curves of val/accuracy")[2].partition("</svg>")[0]
    assert chart.count('class="rung"') == 2
    assert "pruned at rung 1</title></circle>" in chart
    assert "Dotted lines: rungs" in page
    assert "Dots: the job was pruned" in page
    paused = [rows[0], replace(rows[1], state="paused")]
    assert "Dots" not in html.Report(paused, tmp_path, **same, searched=True).write().read_text()
    for row in rows:
        lines = (row.directory / "metrics.jsonl").read_text().splitlines(keepends=True)
        (row.directory / "metrics.jsonl").write_text("".join(line for line in lines if '"rung"' not in line))
    assert "Dotted" not in html.Report(rows, tmp_path, **same).write().read_text()


def test_importance_in_a_search_is_that_of_optuna(tmp_path: Path) -> None:
    drawn = Random(1)
    rows = []
    for num in range(40):
        rate, width = 10 ** drawn.uniform(-5, -1), drawn.choice(["[8]", "[16]"])
        overrides = {"optim.lr": repr(rate), "model.hidden": width} | ({"optim.momentum": "0.9"} if num % 2 else {})
        rows.append(JobRow(num, overrides, "done", -((math.log10(rate) + 3) ** 2), 1.0, tmp_path))
    names = ["optim.lr", "model.hidden", "optim.momentum"]
    for direction, sign in (("maximize", 1.0), ("minimize", -1.0)):
        own = [replace(row, objective=sign * (row.objective or 0.0)) for row in rows]
        found = importance_in_search(own, names, direction)
        shares = [each or 0.0 for each in found.values()]
        assert sum(shares) == pytest.approx(1.0)
        assert shares[0] > 0.8
    assert set(importance_in_search(rows[:3], names, "maximize").values()) == {None}
    rows[0] = replace(rows[0], objective=math.inf)
    rows[1] = replace(rows[1], objective=math.nan)
    page = (
        html.Report(rows, tmp_path, title="t", objective=None, direction="maximize", searched=True).write().read_text()
    )
    assert "PED-ANOVA" in page
