"""Page of a sweep: report.html."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from html import escape
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

from trainyard.files import writing
from trainyard.quoting import shell_path
from trainyard.sweep.goals import Direction, Goals
from trainyard.sweep.report import charts, curves, tables
from trainyard.sweep.report.axes import FAR
from trainyard.sweep.report.importance import METHOD, METHOD_OF_SEARCH, importance, importance_in_search
from trainyard.sweep.report.items import (
    COLOURED,
    CROWD,
    SHADES,
    Item,
    far_off,
    of_configurations,
    of_jobs,
    shades,
)
from trainyard.sweep.report.journals import RUNG, TRAIN_LOSS, JobNumbers, read_all
from trainyard.sweep.report.origin import Origin
from trainyard.sweep.report.page import document
from trainyard.sweep.report.ranking import rank
from trainyard.sweep.report.repeats import Configuration, configurations, seeds_vary, tuned
from trainyard.sweep.report.rows import JobRow, duration, front_of, number, with_spread

SHOWN = 1000
"""Number of jobs, best first, in the tables and charts; a page with more jobs is slow to open."""


class Report:
    """The page of a sweep, `report.html`.

    It shows the means of configurations (if jobs are repeats), the jobs, unfinished jobs, learning curves, parallel
    coordinates, each parameter against the objective, and importance. With several objectives, it also shows the Pareto
    front; for a search, the optimization history.

    Args:
        rows: the jobs, in any order.
        directory: the output directory; it must exist. Links to the jobs' directories are relative to it.
        title: the page's heading.
        objective: the name of the metric that ranks; None if the objective is not a metric.
        direction: whether a high or a low objective is better.
        searched: whether the values of later jobs were chosen by the objectives of earlier ones.
        goals: the goals by which a search compares the jobs, if these are more than the objective.
        found: the numbers of the jobs, by their number; None reads them from `metrics.jsonl` in their directories.
        live: the seconds after which the page reloads itself; None for never.
        has_seed: whether the config of the jobs has a seed.
    """

    def __init__(
        self,
        rows: Sequence[JobRow],
        directory: str | Path,
        *,
        title: str,
        objective: str | None,
        direction: Direction,
        searched: bool = False,
        goals: Goals | None = None,
        found: Mapping[int, JobNumbers] | None = None,
        live: float | None = None,
        has_seed: bool = True,
    ) -> None:
        ranking = rank(rows, direction)
        self.ranking = ranking
        self.directory = Path(directory)
        self.title = title
        self.live = live
        self.has_seed = has_seed
        self.metric = objective
        self.objectives: dict[str, Direction] = {objective or "objective": direction}
        if goals is not None:
            self.objectives = dict(zip(goals.names, goals.directions, strict=True))
        self.first, self.direction = next(iter(self.objectives.items()))
        self.numbers = read_all(ranking, objective, direction) if found is None else found
        self.searched = searched
        self.goals = goals
        self.names = tuned(ranking)
        self.configurations = configurations(ranking, self.direction)
        self.jobs = of_jobs(ranking[:SHOWN])
        self.items = of_configurations(self.configurations[:SHOWN]) if self.configurations else self.jobs
        self.shade = shades(self.items, self.direction)
        self.key_of = {num: item.key for item in self.items for num in item.jobs}
        self._origin = Origin.of(self.directory, ranking[:SHOWN])

    def write(self) -> Path:
        """Write the page. The file is replaced atomically, so a reader never sees an incomplete page.

        Returns:
            The file.

        Raises:
            TrainyardError: the file cannot be written.
        """
        file = self.directory / "report.html"
        content = document(self.title, "\n".join((*self._tables(), *self._charts)), self.live)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        with writing(file, part, f"`trainyard sweep report {shell_path(self.directory)}` writes the report"):
            part.write_text(content, encoding="utf-8", errors="replace")
            part.replace(file)
        return file

    def add_links(self) -> None:
        """Write the page again if MLflow has received more of the sweep's runs since, to which it then links.

        Raises:
            TrainyardError: the file cannot be written.
        """
        before = self._origin
        self._origin = before.with_pages(self.directory, self.ranking[:SHOWN])
        if self._origin != before:
            self.write()

    def _tables(self) -> Iterator[str]:
        yield self._summary()
        if self.configurations:
            yield from tables.of_configurations(
                self.configurations[:SHOWN], self.names, self.ranking, self.first, self.numbers
            )
        keys = {row.num: self.key_of.get(row.num, str(row.num)) for row in self.ranking}
        pages = self._origin.pages
        yield from tables.of_jobs(
            self.ranking, self.first, self.direction, self.directory, self.numbers, keys, pages, SHOWN
        )
        yield from tables.of_failures(self.ranking, self.directory)

    @cached_property
    def _charts(self) -> list[str]:
        return [*self._front(), *self._history(), *self._curves(), *self._parameters()]

    def _summary(self) -> str:
        ranking, origin = self.ranking, self._origin
        states = Counter(row.state for row in ranking)
        seconds = [row.seconds for row in ranking if row.seconds is not None]
        done = [row.seconds for row in ranking if row.seconds is not None and row.state == "done"]
        better = {"maximize": "higher is better", "minimize": "lower is better"}
        named = ", ".join(f"{name} ({better[direction]})" for name, direction in self.objectives.items())
        bounds = ", ".join(map(str, () if self.goals is None else self.goals.constraints))
        counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
        facts = {
            "Jobs": f"{len(ranking)} ({counted})" if ranking else "0",
            "Objective" if len(self.objectives) == 1 else "Objectives": named,
            **({"Constraints": bounds} if bounds else {}),
            **self._best(),
            "Time of all jobs": duration(sum(seconds) if seconds else None),
            "Mean time of a finished job": duration(sum(done) / len(done) if done else None),
            **({} if origin.started is None else {"Started": _date(origin.started)}),
            **({"Written": _date(time.time())} if self.live is not None else {}),
            **({"Commit": origin.commit} if origin.commit else {}),
        }
        items = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()]
        if origin.command:
            items.append(f'<div class="long"><dt>Command</dt><dd><code>{escape(origin.command)}</code></dd></div>')
        if origin.page:
            served = f" (served by <code>{escape(origin.server)}</code>)" if origin.server else ""
            link = f'<a href="{escape(origin.page)}">the run of this sweep</a>{served}'
            items.append(f'<div class="long"><dt>MLflow</dt><dd>{link}</dd></div>')
        return f"<h1>{escape(self.title)}</h1>\n<dl>{''.join(items)}</dl>{''.join(self._notes())}"

    def _best(self) -> dict[str, str]:
        """Return the best result: the Pareto front, a configuration by its mean, or a job."""
        front = [f"#{num}" for num, place in front_of(self.ranking).items() if place == 1]
        if front:
            return {"Pareto front": ", ".join(front)}
        if self.configurations:
            best = next((each for each in self.configurations if each.is_whole), None)
            return {"Best configuration": "none is complete" if best is None else _told(best)}
        best_job = next((row for row in self.ranking if row.ranked), None)
        if best_job is None:
            infeasible = any(row.state == "done" and row.violation for row in self.ranking)
            name = "Best job" if len(self.objectives) == 1 else "Pareto front"
            return {name: "no finished job is feasible" if infeasible else "none finished with an objective"}
        return {"Best job": f"{best_job.label}: {number(best_job.objective)}"}

    @property
    def _kind(self) -> str:
        """Which jobs the charts show: all that finished, or with constraints, the feasible ones of these."""
        return "feasible" if self.goals is not None and self.goals.constraints else "finished"

    def _notes(self) -> Iterator[str]:
        far = far_off(self.items)
        what = "configurations" if self.configurations else f"{self._kind} jobs"
        if self.live is not None:
            yield '\n<p class="note screen">The sweep is running. This page reloads itself.</p>'
        if self.has_seed and not seeds_vary(self.ranking) and sum(row.ranked for row in self.ranking) > 1:
            setting = "hydra.sweeper.repeats=5" if self.searched else "'seed=range(5)'"
            alone = self.goals is not None or any(row.history.startswith("#") for row in self.ranking)
            advice = "" if alone else f" Several seeds (<code>{setting}</code>) give means with confidence intervals."
            yield (
                '\n<p class="note">Each configuration was trained with one seed, so a small difference can be due to '
                f"chance.{advice}</p>"
            )
        if far:
            yield (
                f'\n<p class="note">Number of {what} whose objective is more than {FAR} interquartile ranges away from '
                f"the others: {far}. The charts show these values at the edge.</p>"
            )
        several = "configurations" if self.configurations else "jobs"
        if (count := len(self.configurations or self.ranking)) > SHOWN:
            yield (
                f'\n<p class="note">Tables and charts show the best {SHOWN:,} of {count:,} {several}; results.csv '
                "contains all jobs.</p>"
            )

    def _front(self) -> Iterator[str]:
        places = front_of(self.ranking)
        if not places:
            return
        first = frozenset(str(num) for num, place in places.items() if place == 1)
        items = {name: of_jobs(self.ranking[:SHOWN], name) for name in self.objectives}
        yield "<h2>Pareto front</h2>"
        yield (
            '<p class="note">Colored: jobs for which no other job is better in one objective without being worse in '
            "another.</p>"
        )
        drawn = [charts.front(items, across, up, self.shade, first) for across, up in combinations(self.objectives, 2)]
        yield f'<div class="charts">{"".join(drawn)}</div>'

    def _history(self) -> Iterator[str]:
        if not self.searched or not any(item.objective is not None for item in self.jobs):
            return
        yield "<h2>Optimization history</h2>"
        best = f"best {SHOWN:,} " if len(self.ranking) > SHOWN else ""
        yield (
            f'<p class="note">The {best}{self._kind} jobs in the order of their numbers. The line is the best value so '
            "far.</p>"
        )
        shade = {str(num): self.shade[key] for num, key in self.key_of.items()} | self.shade
        drawn = [charts.history(self._jobs_by(name), name, better, shade) for name, better in self.objectives.items()]
        yield f'<div class="charts">{"".join(drawn)}</div>'

    def _jobs_by(self, name: str) -> list[Item]:
        return of_jobs(self.ranking[:SHOWN], name) if len(self.objectives) > 1 else self.jobs

    def _items_by(self, name: str) -> Sequence[Item]:
        return self._jobs_by(name) if len(self.objectives) > 1 else self.items

    def _curves(self) -> Iterator[str]:
        yield "<h2>Learning curves</h2>"
        metrics = dict.fromkeys(name for name in (self.metric, TRAIN_LOSS) if name is not None)
        drawn = [curves.draw(self.items, self.numbers, metric, self.shade) for metric in metrics]
        if not any(drawn):
            yield f'<p class="note">No job has recorded {escape(" or ".join(metrics))}.</p>'
            return
        legend = "".join(f'<i class="c{index}"></i>' for index in range(SHADES))
        what = "configurations" if self.configurations else "jobs"
        crowded = len(self.items) > CROWD
        coloured = f"Only the best {COLOURED} {what} are colored" if crowded else "Colored"
        by = "the objective" if len(self.objectives) == 1 else escape(self.first)
        note = f'{coloured} by {by}: worst <span class="legend">{legend}</span> best. Gray: all others.'
        if self.configurations:
            note += (
                " A line is the mean over the jobs of a configuration; the band is ± one standard deviation. "
                f"Bands are shown for the best {curves.BANDS} configurations and for the "
                f"{'colored ' if crowded else ''}configuration under the pointer."
            )
        if any(own.curves.get(RUNG) for own in self.numbers.values()):
            note += " Dotted lines: rungs, at which jobs report their objective to the sweep."
            note += " Dots: the job was pruned at this point." if any(item.end for item in self.items) else ""
        yield f'<p class="note">{note}</p>'
        yield f'<div class="charts">{"".join(drawn)}</div>'

    def _parameters(self) -> Iterator[str]:
        names = self.names
        if not names or sum(item.objective is not None for item in self.items) < 2:
            yield '<h2>Parameters</h2>\n<p class="note">There are no parameters to compare: '
            jobs = "feasible jobs" if self._kind == "feasible" else "jobs"
            few = f"fewer than two {'configurations' if self.configurations else jobs}"
            yield "no parameter varies.</p>" if not names else f"{few} finished with an objective.</p>"
            return
        what = "configuration (the mean of its jobs)" if self.configurations else f"{self._kind} job"
        yield f'<h2>Parallel coordinates</h2>\n<p class="note">One line for each {what}.</p>'
        yield f'<div class="scroll wide">{charts.parallel(self.items, names, self.first, self.shade)}</div>'
        several = "configurations" if self.configurations else "jobs"
        for objective in self.objectives:
            drawn = [charts.scatter(self._items_by(objective), name, objective, self.shade) for name in names]
            note = ["Means with 95 % confidence intervals."] if self.configurations else []
            if any('class="median"' in chart for chart in drawn):
                note += ["Configurations with the same value are drawn side by side."] if self.configurations else []
                note.append(f"A horizontal bar marks the median of the {several} with the same value.")
            yield f"<h2>Parameters against {escape(objective)}</h2>"
            if note:
                yield f'<p class="note">{" ".join(note)}</p>'
            yield f'<div class="charts">{"".join(drawn)}</div>'
        searched = self.searched and find_spec("optuna") is not None
        yield f'<h2>Importance</h2>\n<p class="note">{escape(METHOD_OF_SEARCH if searched else METHOD)}</p>'
        for objective, direction in self.objectives.items():
            if len(self.objectives) > 1:
                yield f"<h3>{escape(objective)}</h3>"
            rows = _by(self.ranking, objective)
            own = {name: importance(rows, name) for name in names}
            why = "too few comparable jobs" if searched else "too few jobs with each value"
            chart = charts.bars(importance_in_search(rows, names, direction) if searched else own, why)
            yield f'<div class="charts">{chart}</div>'


def _by(ranking: Sequence[JobRow], name: str) -> Sequence[JobRow]:
    """Return the jobs with one of their numbers as the objective."""
    return [replace(row, objective=row.value(name)) if row.metrics else row for row in ranking]


def _told(found: Configuration) -> str:
    mean, margin = with_spread(found.mean, found.margin)
    interval = f" ± {margin} (95 %, n = {found.count})" if margin else f" (n = {found.count})"
    return f"{found.label}: {mean}{interval}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
