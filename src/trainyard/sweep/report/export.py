"""Tables for a paper: the configurations of a sweep, mean ± standard deviation, as CSV, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainyard.errors import ConfigError
from trainyard.sweep.goals import Direction
from trainyard.sweep.report.journals import JobNumbers, column, metric_names, objectives
from trainyard.sweep.report.ranking import configuration_places
from trainyard.sweep.report.repeats import Configuration, compared, grouped, repeated, tuned
from trainyard.sweep.report.result_files import objective_column
from trainyard.sweep.report.rows import JobRow, keys, p_value, with_spread
from trainyard.sweep.report.samples import Difference, Sample

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # at the beginning of a row it would be an argument of the line break before
        "]": "{]}",
    }
)


@dataclass(frozen=True)
class Comparison:
    """Configurations of a sweep, best first, with the metrics that a paper shows.

    Attributes:
        names: the parameters.
        metrics: the metrics.
        over: the keys in which the repeats differ: the seed, the fold.
        configurations: the configurations.
        samples: the statistics of each metric, one for each configuration.
        differences: the paired difference of each configuration from the first one, in the first metric; empty if no
            configuration was repeated.
    """

    names: list[str]
    metrics: list[str]
    over: list[str]
    configurations: list[Configuration]
    samples: dict[str, list[Sample]]
    differences: list[Difference | None]

    @classmethod
    def of(
        cls,
        rows: Sequence[JobRow],
        objective: str | None,
        direction: Direction,
        numbers: Mapping[int, JobNumbers],
        metrics: Sequence[str] = (),
    ) -> Comparison:
        """Compare the configurations of a sweep.

        Args:
            rows: the jobs, in any order.
            objective: the objective's name, which orders the configurations; None if it has none.
            direction: whether a high or a low objective is better.
            numbers: the numbers of the jobs, by their number.
            metrics: the metrics; if empty, the objective and all metrics of the test.

        Raises:
            ConfigError: no job has such a metric.
        """
        own = objective or "objective"
        known = [own, *metric_names([each.values for each in numbers.values()], objective)]
        for name in metrics:
            if name not in known:
                raise ConfigError("--metric", name, f"a metric of this sweep: {', '.join(known)}", options=known)
        chosen = list(dict.fromkeys(metrics)) or [own, *(name for name in known if name.startswith("test/"))]
        found = grouped(rows, direction)
        columns = {name: objectives(rows) if name == own else column(numbers, name) for name in chosen}
        samples = {name: [each.sample_of(values) for each in found] for name, values in columns.items()}
        apart = compared(found, columns[chosen[0]])
        tested = any(each is not None and each.sample.n > 1 for each in apart)
        over = repeated(found)
        names = tuned(rows, over) or [key for key in keys(rows) if key not in over]
        return cls(names, chosen, over, found, samples, apart if tested else [])

    @property
    def note(self) -> str:
        """Explanation of the numbers, in sentences."""
        seeds = ", ".join(self.over)
        parts = [
            f"Mean ± standard deviation over {seeds}; n: finished jobs." if seeds else "One job per configuration."
        ]
        if self.differences:
            parts.append(
                f"Difference: mean paired difference in {self.metrics[0]} from the first row, with a 95 % "
                "confidence interval. p: two-sided paired t-test, with Holm's correction."
            )
        return " ".join(parts)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the heads and rows as texts."""
        heads = [*self.names, *self.metrics, "n", *(["difference", "p (Holm)"] if self.differences else [])]
        rows = []
        for index, each in enumerate(self.configurations):
            cells = ["-" if (value := each.value(name)) is None else value for name in self.names]
            cells += [" ± ".join(filter(None, _spread(self.samples[name][index]))) for name in self.metrics]
            cells.append(each.count)
            if self.differences:
                cells += _difference(self.differences[index])
            rows.append(cells)
        return heads, rows


def _spread(sample: Sample) -> tuple[str, str]:
    return with_spread(sample.mean, sample.std)


def _difference(found: Difference | None) -> list[str]:
    if found is None:
        return ["", ""]
    mean, margin = with_spread(found.sample.mean, found.sample.margin)
    return [f"{mean} ± {margin}" if margin else mean, p_value(found.corrected)]


def as_text(table: Comparison, kind: str, objective: str | None) -> str:
    """Return a table in one of the formats `csv`, `md`, `latex`."""
    if kind == "csv":
        return as_csv(table, objective)
    return as_markdown(table) if kind == "md" else as_latex(table)


def as_csv(table: Comparison, objective: str | None) -> str:
    """Return a table as CSV, with the full precision of the numbers; a column for each number.

    Args:
        table: the table.
        objective: the objective's name: its columns are called `…/best/<objective>`, as in results.csv.
    """
    titles = {
        name: objective_column(objective) if name == (objective or "objective") else name for name in table.metrics
    }
    first = titles[table.metrics[0]]
    heads = ["rank", *table.names, "n"]
    heads += [f"{kind}/{titles[name]}" for name in table.metrics for kind in ("mean", "std", "margin")]
    if table.differences:
        heads += [f"difference/{first}", f"difference_margin/{first}", f"p/{first}", f"p_holm/{first}"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    places = configuration_places(table.configurations)
    for index, (each, place) in enumerate(zip(table.configurations, places, strict=True)):
        values: list[object] = [place, *(each.value(name) for name in table.names), each.n]
        for name in table.metrics:
            sample = table.samples[name][index]
            values += [sample.mean, sample.std, sample.margin]
        if table.differences:
            found = table.differences[index]
            values += (
                [None] * 4 if found is None else [found.sample.mean, found.sample.margin, found.p, found.corrected]
            )
        writer.writerow(["" if value is None else value for value in values])
    return stream.getvalue()


def as_markdown(table: Comparison) -> str:
    """Return a table as Markdown, with a sentence that explains the numbers."""
    heads, rows = table.cells()
    marks = ["---" if index < len(table.names) else "---:" for index in range(len(heads))]
    lines = [_line(heads), _line(marks), *map(_line, rows)]
    return "\n".join([*lines, "", table.note, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def as_latex(table: Comparison) -> str:
    """Return a table as LaTeX: a `tabular` with the rules of the package booktabs."""
    heads, rows = table.cells()
    columns = "l" * len(table.names) + "r" * (len(heads) - len(table.names))
    body = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in rows]
    note = table.note.replace("%", r"\%").replace("±", r"$\pm$")
    return "\n".join(
        [
            f"% {note}",
            r"% This table needs \usepackage{booktabs}.",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_latex(head) for head in heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex(cell: str) -> str:
    """Return a cell with escaped special characters of LaTeX; numbers with their signs are in math mode."""
    if " ± " in cell or (cell.startswith(("< ", "-")) and cell != "-"):
        return f"${cell.replace('±', chr(92) + 'pm')}$"
    return "--" if cell == "-" else cell.translate(_LATEX)
