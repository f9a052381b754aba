"""What a search knows before it begins: points to try first, and the trials of other sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.errors import ConfigError
from trainyard.sweep.goals import Goals, as_number
from trainyard.sweep.grid_settings import text_of
from trainyard.sweep.manifest import FILE, Manifest
from trainyard.sweep.proposers.sampling import complete
from trainyard.sweep.proposers.space import Parameter, Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ENQUEUE = "hydra.sweeper.enqueue"
WARM_START = "hydra.sweeper.warm_start"


def given_points(value: Any, space: Space) -> list[dict[str, Any]]:
    """Return the points of `hydra.sweeper.enqueue`, as values of the parameters.

    Raises:
        ConfigError: a point names something that is not searched, or a value outside of its range.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(point, Mapping) for point in value):
        raise ConfigError(ENQUEUE, value, "a list of points, such as [{optim.lr: 1e-3}]")
    return [{str(key): _checked(str(key), each, space) for key, each in point.items()} for point in value]


def _checked(key: str, given: Any, space: Space) -> Any:
    parameter = space.parameters.get(key)
    if parameter is None:
        names = list(space.parameters)
        raise ConfigError(ENQUEUE, key, f"a parameter of the search: {', '.join(names)}", options=names)
    value = _value(parameter, text_of(given))
    if value is None:
        raise ConfigError(f"{ENQUEUE}: {key}", given, f"a value of {parameter.distribution}")
    return value


def _value(parameter: Parameter, text: str) -> Any:
    """Return the value that a text stands for; None if it lies outside of the parameter's range."""
    try:
        value = parameter.value(text)
        is_in = parameter.distribution._contains(parameter.distribution.to_internal_repr(value))
    except ValueError:
        return None
    return value if is_in else None


@dataclass(frozen=True)
class Earlier:
    """Trials of another sweep.

    Attributes:
        trials: the values of each that can be learned from, and its objective: of a search with `Goals` what it
            returned, by name.
        told: what was taken and what was not, for people.
    """

    trials: Sequence[tuple[dict[str, Any], Any]] = ()
    told: Sequence[str] = field(default_factory=list)

    @classmethod
    def read(cls, directory: Any, space: Space, goals: Goals | None = None) -> Earlier:
        """Return the trials of `hydra.sweeper.warm_start`: the jobs that are done in a sweep's directory.

        Raises:
            ConfigError: there is no sweep.
        """
        if directory is None:
            return cls()
        path = Path(str(directory)).expanduser()
        if not (path / FILE).is_file():
            raise ConfigError(WARM_START, str(directory), "the directory of a sweep", hint=f"It has no {FILE}.")
        taken: list[tuple[dict[str, Any], Any]] = []
        left: dict[str, list[int]] = {}
        for num, entry in Manifest.open(path).entries.items():
            values, why = _values(entry.overrides, space)
            objective, lacks = _objective(entry.objective, goals)
            if entry.state != "done" or lacks:
                why = lacks if entry.state == "done" and goals is not None else "not done with an objective"
            if why:
                left.setdefault(why, []).append(num)
            else:
                taken.append((values, objective))
        told = [f"Warm start from {path}: {len(taken)} of {len(taken) + sum(map(len, left.values()))} jobs are taken."]
        told += [f"  not {', '.join(f'#{num}' for num in nums)}: {why}" for why, nums in left.items()]
        return cls(taken, told)

    def frozen(self, space: Space, goals: Goals | None = None) -> list[FrozenTrial]:
        """Return them as trials of Optuna's."""
        from optuna.trial import create_trial

        if goals is not None:
            return [complete(goals, metrics, space, values) for values, metrics in self.trials]
        return [
            create_trial(params=values, distributions=space.distributions(list(values)), value=objective)
            for values, objective in self.trials
        ]


def _objective(value: Any, goals: Goals | None) -> tuple[Any, str]:
    """Return what a search can learn from what a job returned, and why it cannot; empty if it can."""
    if goals is None:
        number = as_number(next(iter(value.values()), None) if isinstance(value, Mapping) else value)
        return number, "not done with an objective" if number is None or math.isnan(number) else ""
    missing = goals.missing(value)
    return goals.measured(value), f"{', '.join(missing)} was not measured there" if missing else ""


def _values(overrides: Sequence[str], space: Space) -> tuple[dict[str, Any], str]:
    """Return the values that overrides give to the parameters, and why they cannot be taken; empty if they can."""
    texts = {line.partition("=")[0].lstrip("+"): line.partition("=")[2] for line in overrides}
    found: dict[str, Any] = {}
    for name, parameter in space.parameters.items():
        if name in texts:
            found[name] = _value(parameter, texts[name])
            if found[name] is None:
                return {}, f"{name} is outside of the range of this search"
        elif not space.is_conditional:
            return {}, f"{name} was no parameter there"
    return found, ""
