"""Goals of a search: several objectives, and constraints on metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainyard.errors import ConfigError

Direction = Literal["maximize", "minimize"]
OBJECTIVE = "hydra.sweeper.objective"
CONSTRAINTS = "hydra.sweeper.constraints"
_CONSTRAINT = re.compile(r"\s*(\S+?)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """Bound on a metric.

    Attributes:
        metric: its name.
        relation: `<=` or `>=`.
        bound: the number.
    """

    metric: str
    relation: Literal["<=", ">="]
    bound: float

    @classmethod
    def read(cls, text: object) -> Constraint:
        """Return the constraint of a text, such as `model/parameters <= 1e5`.

        Raises:
            ConfigError: the text has another form.
        """
        found = _CONSTRAINT.fullmatch(text) if isinstance(text, str) else None
        try:
            bound = math.nan if found is None else float(found[3])
        except ValueError:
            bound = math.nan
        if found is None or math.isnan(bound):
            accepted = "a metric, <= or >=, and a number, such as 'model/parameters <= 1e5', or null"
            raise ConfigError(CONSTRAINTS, text, accepted)
        return cls(found[1], found[2], bound)  # type: ignore[arg-type]

    def violation(self, value: float | None) -> float:
        """Return by how much a value violates the bound: at most 0 if the constraint is satisfied; infinity without a
        value."""
        if value is None or math.isnan(value):
            return math.inf
        return value - self.bound if self.relation == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.metric} {self.relation} {repr(self.bound).removesuffix('.0')}"


@dataclass(frozen=True)
class Goals:
    """Goals by which the jobs of a search are compared, if these are more than a single objective.

    Attributes:
        names: the names of the objectives.
        directions: the direction of each objective.
        constraints: the constraints on jobs.
    """

    names: tuple[str, ...]
    directions: tuple[Direction, ...]
    constraints: tuple[Constraint, ...] = ()

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Goals | None:
        """Return the goals in the identity of a search; None if it has one objective without constraints."""
        if "objective" not in identity:
            return None
        given = identity["direction"]
        directions = tuple(given) if isinstance(given, list | tuple) else (given,)
        return cls(tuple(identity["objective"]), directions, tuple(map(Constraint.read, identity["constraints"])))

    @property
    def identity(self) -> dict[str, Any]:
        """The goals as plain data."""
        direction = list(self.directions) if self.several else self.directions[0]
        constraints = list(map(str, self.constraints))
        return {"objective": list(self.names), "direction": direction, "constraints": constraints}

    @property
    def several(self) -> bool:
        """Whether there are several objectives."""
        return len(self.names) > 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values that a job returns, in this order or by name: the objectives, and the other bounded
        metrics."""
        return tuple(dict.fromkeys([*self.names, *self.bounded]))

    @property
    def keys(self) -> dict[str, str]:
        """The metrics, each with the key of the config that names it."""
        objective = OBJECTIVE if self.several else "objective"
        return {name: objective if name in self.names else CONSTRAINTS for name in self.metrics}

    @property
    def bounded(self) -> tuple[str, ...]:
        """The metrics that constraints bound."""
        return tuple(dict.fromkeys(each.metric for each in self.constraints))

    @property
    def signs(self) -> tuple[float, ...]:
        """For each objective: 1 if a lower value is better, -1 if a higher one is."""
        return tuple(1.0 if each == "minimize" else -1.0 for each in self.directions)

    def measured(self, value: Any) -> dict[str, float]:
        """Return the available results of a job by name, from a mapping, a list, or a single number."""
        pairs: Any = {self.names[0]: value}
        if isinstance(value, Mapping):
            pairs = {name: value.get(name) for name in self.metrics}
        elif isinstance(value, Sequence) and not isinstance(value, str):
            pairs = dict(zip(self.metrics, value, strict=False))
        return {name: found for name, each in pairs.items() if (found := as_number(each)) is not None}

    def missing(self, value: Any) -> list[str]:
        """Return the names for which a job has returned no number."""
        found = self.measured(value)
        return [name for name in self.metrics if name not in found]

    def losses(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return the objectives as numbers to minimize; infinity for missing values and NaN."""
        values = [metrics.get(name, math.nan) for name in self.names]
        return tuple(math.inf if math.isnan(v) else sign * v for v, sign in zip(values, self.signs, strict=True))

    def violations(self, metrics: Mapping[str, float]) -> list[float]:
        """Return the violation of each constraint: at most 0 if it is satisfied."""
        return [each.violation(metrics.get(each.metric)) for each in self.constraints]

    def known_violations(self, metrics: Mapping[str, float]) -> list[float]:
        """Return the violations at a rung: 0 for a constraint on a metric that is not measured there."""
        return [each.violation(metrics[each.metric]) if each.metric in metrics else 0.0 for each in self.constraints]

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Return the total violation of the constraints; 0 if all are satisfied."""
        return math.fsum(max(0.0, each) for each in self.violations(metrics))

    def best(self, value: Any) -> float | None:
        """Return the objective of a job; None if the job violates a constraint, or if there are several objectives."""
        found = self.measured(value)
        return None if self.several or self.violation(found) > 0 else found.get(self.names[0])


def as_number(value: Any) -> float | None:
    """Return a number as a float; None if it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def fronts(losses: Sequence[Sequence[float]]) -> list[int]:
    """Return the number of the Pareto front of each point, from 1: no other point dominates one in front 1.

    Front k + 1 is the Pareto front of the points that are not in the fronts up to k: the ranks of a non-dominated sort
    (Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", 2002).

    Args:
        losses: the points, whose coordinates are minimized.

    Example:
        >>> fronts([(1, 2), (2, 1), (2, 2), (3, 3)])
        [1, 1, 2, 3]
    """
    import numpy as np

    order = sorted(range(len(losses)), key=lambda index: tuple(losses[index]))  # none is dominated by a later one
    placed = np.asarray([losses[index] for index in order], dtype=float)
    ranks = np.zeros(len(losses), dtype=int)
    for place in range(len(losses)):
        before = placed[:place]
        dominates = np.all(before <= placed[place], axis=1) & np.any(before < placed[place], axis=1)
        ranks[place] = 1 + max(ranks[:place][dominates], default=0)
    found = dict(zip(order, map(int, ranks), strict=True))
    return [found[index] for index in range(len(losses))]
