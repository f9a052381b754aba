"""Tables and figures for a paper."""

import csv
import io
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from trainyard.errors import ConfigError
from trainyard.sweep.report import JobRow, figures
from trainyard.sweep.report.export import Comparison, as_csv, as_latex, as_markdown
from trainyard.sweep.report.journals import JobNumbers, read_all
from trainyard.track import Journal

VALUES = {"[128]": (0.90, 0.92, 0.94), "[16]": (0.80, 0.85, 0.81), "a_b%|x": (0.5, None, 0.6)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[JobRow], dict[int, JobNumbers]]:
    """Three configurations of three seeds, one job of which has failed."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = []
    for num, (hidden, seed) in enumerate(itertools.product(VALUES, range(3))):
        value = VALUES[hidden][seed]
        directory = folder / str(num)
        directory.mkdir()
        with Journal(directory) as journal:
            journal.status("RUNNING")
            for epoch in range(1, 4):
                journal.metrics(epoch, {"val/accuracy": (value or 0.1) - 0.3 / epoch}, epoch=epoch)
            journal.metrics(3, {"test/accuracy": (value or 0.1) / 2}, epoch=3)
        overrides = {"model.hidden": hidden, "seed": str(seed)}
        rows.append(JobRow(num, overrides, "failed" if value is None else "done", value, 1.0, directory))
    return rows, read_all(rows, "val/accuracy", "maximize")


def table(sweep: tuple[list[JobRow], dict[int, JobNumbers]], *metrics: str) -> Comparison:
    return Comparison.of(sweep[0], "val/accuracy", "maximize", sweep[1], metrics)


def test_a_csv_has_every_number(sweep: tuple[list[JobRow], dict[int, JobNumbers]]) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(table(sweep), "val/accuracy"))))
    assert [(row["rank"], row["model.hidden"], row["n"]) for row in rows] == [
        ("1", "[128]", "3"),
        ("2", "[16]", "3"),
        ("", "a_b%|x", "2"),
    ]
    assert float(rows[0]["mean/best/val/accuracy"]) == pytest.approx(0.92)
    assert float(rows[0]["std/best/val/accuracy"]) == pytest.approx(0.02)
    assert float(rows[0]["mean/test/accuracy"]) == pytest.approx(0.46)
    assert rows[0]["p/best/val/accuracy"] == ""
    tests = [stats.ttest_rel((0.80, 0.85, 0.81), (0.90, 0.92, 0.94)), stats.ttest_rel((0.5, 0.6), (0.90, 0.94))]
    p_values = [test.pvalue for test in tests]
    assert [float(row["p/best/val/accuracy"]) for row in rows[1:]] == pytest.approx(p_values)
    assert float(rows[1]["p_holm/best/val/accuracy"]) == pytest.approx(2 * min(p_values))
    assert float(rows[1]["difference/best/val/accuracy"]) == pytest.approx(-0.1)


def test_the_first_metric_is_compared(sweep: tuple[list[JobRow], dict[int, JobNumbers]]) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(table(sweep, "test/accuracy"), "val/accuracy"))))
    assert float(rows[1]["difference/test/accuracy"]) == pytest.approx(-0.05)
    assert "mean/best/val/accuracy" not in rows[0]
    with pytest.raises(ConfigError, match="Did you mean 'test/accuracy'"):
        table(sweep, "test/acuracy")


def test_markdown_says_what_the_numbers_are(sweep: tuple[list[JobRow], dict[int, JobNumbers]]) -> None:
    lines = as_markdown(table(sweep)).splitlines()
    assert lines[0] == "| model.hidden | val/accuracy | test/accuracy | n | difference | p (Holm) |"
    assert lines[2] == "| [128] | 0.920 ± 0.020 | 0.460 ± 0.010 | 3 |  |  |"
    assert lines[4].startswith("| a_b%\\|x | 0.550 ± 0.071 | 0.275 ± 0.035 | 2/3 | -0.37 ± 0.38 |")
    assert lines[-1].startswith("Mean ± standard deviation over seed; n: finished jobs. Difference: mean paired")


def test_a_sweep_without_repeats_has_numbers_alone() -> None:
    rows = [JobRow(num, {"lr": str(num)}, "done", num / 10, 1.0, Path(str(num))) for num in range(3)]
    text = as_markdown(Comparison.of(rows, None, "minimize", {}))
    assert text.splitlines()[:3] == ["| lr | objective | n |", "| --- | ---: | ---: |", "| 0 | 0 | 1 |"]
    assert text.endswith("One job per configuration.\n")


def test_a_seed_that_distinguishes_configurations_is_a_column(tmp_path: Path) -> None:
    """Members of a population: nothing is averaged over their seeds."""
    rows = [
        JobRow(num, {"lr": "0.1", "seed": seed}, "done", num / 10, 1.0, Path(str(num)), history=f"#{num}")
        for num, seed in enumerate("334")
    ]
    found = Comparison.of(rows, None, "maximize", {})
    lines = as_markdown(found).splitlines()
    assert lines[0] == "| seed | objective | n |"
    assert lines[2:5] == ["| 4 | 0.2 | 1 |", "| 3 | 0.1 | 1 |", "| 3 | 0 | 1 |"]
    assert lines[-1] == "One job per configuration."
    assert [line.split(",")[:3] for line in as_csv(found, None).splitlines()] == [
        ["rank", "seed", "n"], ["1", "4", "1"], ["2", "3", "1"], ["3", "3", "1"],
    ]  # fmt: skip
    drawn = figures.write(found, {}, None, tmp_path / "figure.svg", "svg").read_text()
    assert re.findall(r"<text[^>]*>(seed=.)</text>", drawn) == ["seed=4", "seed=3", "seed=3"]


def test_latex_escapes_and_compiles(sweep: tuple[list[JobRow], dict[int, JobNumbers]], tmp_path: Path) -> None:
    source = as_latex(table(sweep))
    rows = [line for line in source.splitlines() if line.endswith(r"\\")]
    assert rows[1].startswith(r"{[}128{]} & $0.920 \pm 0.020$ & ")
    assert rows[3].startswith(r"a\_b\%\textbar{}x & ")
    assert all(row.count("&") == 5 for row in rows)
    if shutil.which("pdflatex") is None:
        return
    packages = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}"
    (tmp_path / "t.tex").write_text(f"{packages}\\begin{{document}}\n{source}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_a_figure_has_curves_and_means(
    sweep: tuple[list[JobRow], dict[int, JobNumbers]], tmp_path: Path, kind: str
) -> None:
    file = tmp_path / f"figure.{kind}"
    found = [figures.write(table(sweep), sweep[1], "val/accuracy", file, kind).read_bytes() for _ in range(2)]
    assert found[0] == found[1], "the same numbers make the same file"
    if kind == "svg":
        words = re.findall(r"<text[^>]*>(.*?)</text>", found[0].decode())
        assert {"iteration", "hidden=[128]", "(95 % confidence interval, n = 2-3)"} <= set(words)
        assert found[0].count(b'<g id="FillBetweenPolyCollection') == 3  # the bands
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
