"""Axes of charts: linear, logarithmic, or one place for each value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import quantiles

from trainyard.sweep.report.rows import in_order, number, parse

FAR = 10  # interquartile ranges
LOG_SPAN = 100 * (1 - 1e-9)  # 1e-4 … 1e-2 is a hundredfold, within rounding


@dataclass(frozen=True)
class Tick:
    """Mark on an axis: its place in [0, 1] and its label."""

    place: float
    label: str


def drawable(value: float | None) -> bool:
    """Return whether a number can be drawn on an axis. Beyond 1e300, differences overflow."""
    return value is not None and math.isfinite(value) and abs(value) < 1e300


def fences(values: Iterable[float | None]) -> tuple[float, float]:
    """Return the bounds beyond which a number is an outlier (a diverged job), which an axis omits.

    The bounds are ten interquartile ranges outside the quartiles, and infinite for fewer than eight numbers.
    """
    numbers = [value for value in values if value is not None and drawable(value)]
    if len(numbers) < 8:
        return -math.inf, math.inf
    low, _, high = quantiles(numbers, n=4)
    reach = FAR * (high - low) or math.inf
    return low - reach, high + reach


@dataclass(frozen=True)
class Scale:
    """Scale from numbers between `low` and `high` to [0, 1]. On a logarithmic scale, both are exponents of ten."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float | None]) -> Scale:
        """Return the scale for all drawable values; logarithmic if they are positive and span a factor of 100."""
        numbers = [value for value in values if value is not None and drawable(value)]
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        if low > 0 and high / LOG_SPAN >= low:
            return cls(math.log10(low), math.log10(high), log=True)
        if high - low <= max(abs(low), abs(high)) * 1e-12 + 1e-300:  # all values are equal: place them in the middle
            room = abs(low) / 2 or 0.5
            return cls(low - room, high + room)
        return cls(low, high)

    def held(self, value: float | None) -> float | None:
        """Return the place of a value; one off the scale is clamped to its end."""
        if self.log and value is not None and value <= 0:
            return 0.0
        place = self.place(value)
        return None if place is None else min(max(place, 0.0), 1.0)

    def place(self, value: float | None) -> float | None:
        if value is None or not drawable(value) or (self.log and value <= 0):
            return None
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self, count: int = 6) -> list[Tick]:
        """Return at most about `count` round numbers on the scale."""
        step = _round_step((self.high - self.low) / count)
        if self.log:
            step = max(1, round(step))
            if self.high - self.low < 3:
                decades = range(math.floor(self.low), math.ceil(self.high))
                return self._within(10.0**exponent * factor for exponent in decades for factor in (1, 2, 5, 10))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        steps = [index * step for index in range(first, last + 1)]
        values = [10.0**exponent for exponent in steps] if self.log else steps
        return self.ticks_at(values)

    def _within(self, values: Iterable[float]) -> list[Tick]:
        return [tick for tick in self.ticks_at(sorted(set(values))) if -1e-9 <= tick.place <= 1 + 1e-9]

    def ticks_at(self, values: Iterable[float]) -> list[Tick]:
        return [Tick(place, number(value, 6)) for value in values if (place := self.place(value)) is not None]


def _round_step(least: float) -> float:
    """Return the next of the steps …, 0.1, 0.2, 0.5, 1, 2, 5, 10, … that is not below `least`."""
    unit = 10.0 ** math.floor(math.log10(least))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= least * (1 - 1e-9))


@dataclass(frozen=True)
class Axis:
    """Axis of a quantity.

    Attributes:
        label: its name.
        places: the place of each job or configuration in [0, 1]; None if it has none.
        ticks: marks along it.
        scale: its scale; None if it has a place for each value.
    """

    label: str
    places: list[float | None]
    ticks: list[Tick]
    scale: Scale | None = None


def numeric(label: str, values: Sequence[float | None]) -> Axis:
    """Return an axis of numbers; those that are not finite have no place."""
    scale = Scale.over(values)
    distinct = sorted({value for value in values if value is not None and drawable(value)})
    ticks = scale.ticks_at(distinct) if len(distinct) <= 6 else scale.ticks()
    return Axis(label, [scale.place(value) for value in values], ticks, scale)


def of_parameter(label: str, texts: Sequence[str | None]) -> Axis:
    """Return the axis of a parameter: numeric if its values are numbers, otherwise one evenly spaced place per value.

    A few numbers that neither a linear nor a logarithmic axis would separate (0, 1e-5, 1e-3) get evenly spaced places
    too, in their order.
    """
    values = parse(texts)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not numbers or not all(drawable(value) for value in numbers):
        return _categories(label, texts, in_order(texts))
    magnitudes = [abs(value) for value in numbers if value]
    if len(set(numbers)) <= 8 and min(numbers) <= 0 and magnitudes and max(magnitudes) / LOG_SPAN >= min(magnitudes):
        return _categories(label, texts, in_order(texts))
    return numeric(label, [float(value) if value is not None else None for value in values])


def _categories(label: str, texts: Sequence[str | None], names: Sequence[str]) -> Axis:
    places = {name: (index + 0.5) / len(names) for index, name in enumerate(names)}
    return Axis(label, [None if text is None else places[text] for text in texts], [*map(Tick, places.values(), names)])
