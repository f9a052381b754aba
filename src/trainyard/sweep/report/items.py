"""Items of charts: jobs, or the means of configurations if jobs are repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.axes import Axis, Scale, drawable, fences
from trainyard.sweep.report.repeats import KEYS, Configuration
from trainyard.sweep.report.rows import JobRow, number, with_spread

SHADES = 12  # classes c0 (worst) to c11 (best)
CROWD = 64  # if there are more items than this, only the best are coloured
COLOURED = 32


@dataclass(frozen=True)
class Item:
    """A job, or a configuration of several jobs.

    Attributes:
        key: its identifier in the page, which its marks in all charts and its rows in the tables have.
        label: its name for users.
        overrides: the varying overrides, without the seed and the fold.
        jobs: the numbers of its jobs.
        objective: the objective, or the mean of the jobs that finished; None if none did.
        margin: half of the width of the mean's 95 % confidence interval; None for a single job.
        end: the reason why its curve ends early; empty if it does not.
    """

    key: str
    label: str
    overrides: Mapping[str, str]
    jobs: tuple[int, ...]
    objective: float | None = None
    margin: float | None = None
    end: str = ""

    @property
    def tip(self) -> str:
        """The label with the objective."""
        if self.margin is None:
            return f"{self.label}: {number(self.objective, 6)}"
        return f"{self.label}: {' ± '.join(filter(None, with_spread(self.objective, self.margin)))}"


def of_jobs(ranking: Sequence[JobRow], name: str | None = None) -> list[Item]:
    """Return the items of jobs.

    Args:
        ranking: the jobs, best first.
        name: the objective, if there are several.
    """
    return [
        Item(
            key=str(row.num),
            label=row.label,
            overrides={key: value for key, value in row.overrides.items() if key not in KEYS},
            jobs=(row.num,),
            objective=(row.objective if name is None else row.value(name)) if row.ranked else None,
            end=(row.error or "pruned") if row.state == "pruned" else "",
        )
        for row in ranking
    ]


def of_configurations(found: Sequence[Configuration]) -> list[Item]:
    """Return the items of configurations.

    Args:
        found: the configurations, best first.
    """
    return [
        Item(
            key=f"c{each.rows[0].num}",
            label=f"{each.label} (n = {each.count})",
            overrides=each.overrides,
            jobs=tuple(row.num for row in each.rows),
            objective=each.mean,
            margin=each.margin,
        )
        for each in found
    ]


def shades(items: Sequence[Item], direction: Direction) -> dict[str, str]:
    """Return the class that colors each item, by its key: the position of its objective between worst and best."""
    if len(items) > CROWD:
        return {item.key: "rest" for item in items} | shades(items[:COLOURED], direction)
    places = objective_axis(items).places
    if direction == "minimize":
        places = [None if place is None else 1 - place for place in places]
    kinds = ("none" if place is None else f"c{min(int(place * SHADES), SHADES - 1)}" for place in places)
    return {item.key: kind for item, kind in zip(items, kinds, strict=True)}


def objective_axis(items: Sequence[Item], label: str = "", *, margins: bool = False) -> Axis:
    """Return the axis of the objective, with round numbers; outliers are drawn at its end.

    Args:
        items: the items.
        label: the objective's name.
        margins: whether the confidence intervals must also fit.
    """
    values = [item.objective for item in items]
    low, high = fences(values)
    near = [item for item in items if item.objective is not None and low <= item.objective <= high]
    ends = [item.objective for item in near]
    if margins:
        own = [(item.objective or 0.0, item.margin) for item in near if item.margin is not None]
        ends += [value + sign * margin for value, margin in own for sign in (-1, 1) if drawable(margin)]
    scale = Scale.over(ends)
    return Axis(label, [scale.held(value) for value in values], scale.ticks(), scale)


def far_off(items: Sequence[Item]) -> int:
    """Return the number of items whose objective is an outlier, drawn at the end of its axis."""
    values = [item.objective for item in items if drawable(item.objective)]
    low, high = fences(values)
    return sum(value is not None and not low <= value <= high for value in values)
