"""Prior knowledge of a search: points to try first, and trials of other sweeps or from MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from omegaconf import DictConfig, OmegaConf

from trainyard.config.saved import saved_config, value_text
from trainyard.errors import ConfigError, TrainyardError, some
from trainyard.sweep.goals import Goals, as_number
from trainyard.sweep.grid_settings import text_of
from trainyard.sweep.manifest import FILE, Manifest
from trainyard.sweep.proposers.sampling import complete
from trainyard.sweep.proposers.space import Parameter, Space
from trainyard.track.past_runs import past_runs

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ENQUEUE = "hydra.sweeper.enqueue"
WARM_START = "hydra.sweeper.warm_start"
FROM = "warm_start_from"  # in the identity of a search
ACCEPTED = "the directory of a sweep, the name of an experiment in MLflow, the name or ID of a run in MLflow, or null"
SHOWN = 10  # names of runs in a line


def given_points(value: Any, space: Space) -> list[dict[str, Any]]:
    """Return the points of `hydra.sweeper.enqueue`, as values of the parameters.

    Raises:
        ConfigError: a point names a key that is not searched, or a value outside its range.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(point, Mapping) for point in value):
        raise ConfigError(ENQUEUE, value, "a list of points, such as [{optim.lr: 1e-3}], or null")
    return [{str(key): _checked(str(key), each, space) for key, each in point.items()} for point in value]


def _checked(key: str, given: Any, space: Space) -> Any:
    parameter = space.parameters.get(key)
    if parameter is None:
        names = list(space.parameters)
        raise ConfigError(ENQUEUE, key, f"a parameter of the search: {', '.join(names)}", options=names)
    value = _value(parameter, text_of(given))
    if value is None:
        raise ConfigError(f"{ENQUEUE}: {key}", given, parameter.accepted)
    return value


def _value(parameter: Parameter, text: str) -> Any:
    """Return the value of a text; None if it is outside the range of the parameter."""
    try:
        value = parameter.value(text)
        is_in = parameter.distribution._contains(parameter.distribution.to_internal_repr(value))
    except ValueError:
        return None
    return value if is_in else None


@dataclass(frozen=True)
class Earlier:
    """Trials of another sweep, or of runs in MLflow.

    Attributes:
        trials: the values of each usable trial, and its objective; in a search with `Goals`, its results by name.
        told: lines about used and skipped trials, for users.
    """

    trials: Sequence[tuple[dict[str, Any], Any]] = ()
    told: Sequence[str] = field(default_factory=list)

    @classmethod
    def read(cls, given: Any, space: Space, config: DictConfig, goals: Goals | None = None) -> Earlier:
        """Return the trials of `hydra.sweeper.warm_start`: those that are done in a sweep's directory, or in MLflow.

        A continued search keeps the trials with which it started.

        Args:
            given: the directory of a sweep, the name of an MLflow experiment, or the name or the ID of a run.
            space: the space of this search.
            config: the config of the entire sweep, which names the store and the objective.
            goals: the goals of this search, if it has more than one objective.

        Raises:
            ConfigError: there is no such sweep, experiment or run.
        """
        if given is None:
            return cls()
        begun = Manifest.open(Path(str(config.hydra.sweep.dir)).absolute()).proposer or {}
        if begun.get(FROM) == str(given):  # there may be more by now
            trials = [(values, value) for values, value in begun["warm_start"]]
            return cls(
                trials,
                [f"The warm start from {given} uses the same {len(trials)} trial{'s' * (len(trials) != 1)} as before."],
            )
        path = Path(str(given)).expanduser()
        if (path / FILE).is_file():
            return cls._of_sweep(path, space, goals)
        if path.exists():
            hint = f"The directory has no {FILE}." if path.is_dir() else "This is a file."
            raise ConfigError(WARM_START, str(given), ACCEPTED, hint=hint)
        return cls._of_mlflow(str(given), space, config, goals)

    @classmethod
    def _of_mlflow(cls, given: str, space: Space, config: DictConfig, goals: Goals | None) -> Earlier:
        objective = str(OmegaConf.select(config, "objective", throw_on_resolution_failure=False) or "objective")
        names = (objective,) if goals is None else goals.metrics
        uri = OmegaConf.select(config, "tracker.uri", throw_on_resolution_failure=False)
        try:
            title, runs = past_runs(given, uri, names, list(space.parameters))
        except TrainyardError as error:
            cause = error.under("tracker") if isinstance(error, ConfigError) else error
            hint = f"There is no directory {Path(given).expanduser().absolute()}. {str(cause).rstrip('.')}."
            raise ConfigError(WARM_START, given, ACCEPTED, hint=hint) from None
        taken: list[tuple[dict[str, Any], Any]] = []
        left: dict[str, list[str]] = {}
        for run in runs:
            if run.kind is not None:
                continue
            values, why = _values(run.params.get, space)
            measured = run.metrics.get(objective) if goals is None else run.metrics
            value, lacks = _objective(measured, goals)
            if run.state != "finished":
                why = run.state
            elif lacks:
                why = f"{objective} is missing or NaN" if goals is None else lacks
            if why:
                left.setdefault(why, []).append(run.name)
            else:
                taken.append((values, value))
        count = len(taken) + sum(map(len, left.values()))
        told = [f"The warm start from {title} uses {len(taken)} of {count} run{'s' * (count != 1)}."]
        return cls(taken, [*told, *(f"  skipped {some(names, SHOWN)}: {why}" for why, names in left.items())])

    @classmethod
    def _of_sweep(cls, path: Path, space: Space, goals: Goals | None) -> Earlier:
        taken: list[tuple[dict[str, Any], Any]] = []
        left: dict[str, list[int]] = {}
        for num, entry in Manifest.open(path).entries.items():
            values, why = _values(_Job(path / (entry.subdir or str(num)), entry.overrides).text, space)
            objective, lacks = _objective(entry.objective, goals)
            if entry.state != "done" or lacks:
                why = lacks if entry.state == "done" and goals is not None else "not finished with an objective"
            if why:
                left.setdefault(why, []).append(num)
            else:
                taken.append((values, objective))
        count = len(taken) + sum(map(len, left.values()))
        told = [f"The warm start from {path} uses {len(taken)} of {count} job{'s' * (count != 1)}."]
        told += [f"  skipped {some((f'#{num}' for num in nums), SHOWN)}: {why}" for why, nums in left.items()]
        return cls(taken, told)

    def frozen(self, space: Space, goals: Goals | None = None) -> list[FrozenTrial]:
        """Return them as Optuna trials."""
        from optuna.trial import create_trial

        if goals is not None:
            return [complete(goals, metrics, space, values) for values, metrics in self.trials]
        return [
            create_trial(params=values, distributions=space.distributions(list(values)), value=objective)
            for values, objective in self.trials
        ]


def _objective(value: Any, goals: Goals | None) -> tuple[Any, str]:
    """Return the objective that a search can use from the result of a job, and the reason if there is none; otherwise
    empty."""
    if goals is None:
        number = as_number(next(iter(value.values()), None) if isinstance(value, Mapping) else value)
        return number, "not finished with an objective" if number is None or math.isnan(number) else ""
    missing = goals.missing(value)
    return goals.measured(value), f"no value of {', '.join(missing)}" if missing else ""


class _Job:
    """Values of a job of a sweep: those of its overrides, otherwise those of its saved config.

    Args:
        directory: the directory of the job, which may be deleted.
        overrides: its overrides.
    """

    def __init__(self, directory: Path, overrides: Sequence[str]) -> None:
        self._directory = directory
        self._given = {line.partition("=")[0].lstrip("+"): line.partition("=")[2] for line in overrides}
        self._files: dict[str, DictConfig] = {}

    def text(self, name: str) -> str | None:
        """Return the value of a key as text; None if it is unknown."""
        if name in self._given:
            return self._given[name]
        for file in ("config.yaml", ".hydra/config.yaml"):  # Hydra writes the second one for any application
            found = value_text(self._config(file), name)
            if found is not None:
                return found
        choices: Any = OmegaConf.select(self._config(".hydra/hydra.yaml"), "hydra.runtime.choices")
        return (choices or {}).get(name)

    def _config(self, file: str) -> DictConfig:
        if file not in self._files:
            try:
                text = (self._directory / file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                text = ""
            self._files[file] = saved_config(text)
        return self._files[file]


def _alike(parameter: Parameter, text: str) -> Any:
    """Return the value of an MLflow param, a text created by Python; None if it is out of range.

    `[16, 32]` is the choice `[16,32]` of the grammar, `None` is `null`, `True` is `true`.
    """
    choices: Sequence[str] = getattr(parameter.distribution, "choices", ())
    return next((each for each in choices if _read(each) == _read(text)), None) if choices else _value(parameter, text)


def _read(text: str) -> Any:
    try:
        return None if text == "None" else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _values(text: Callable[[str], str | None], space: Space) -> tuple[dict[str, Any], str]:
    """Return the values of the parameters, and the reason if they cannot be used; otherwise empty.

    Args:
        text: returns the value of a key as text, or None if it is unknown.
        space: the space of the search.
    """
    found: dict[str, Any] = {}
    for name in space.order:
        if not space.applies(name, found):
            continue
        own = text(name)
        if own is None:
            return {}, f"the value of {name} is unknown"
        found[name] = _alike(space.parameters[name], own)
        if found[name] is None:
            return {}, f"the value of {name} is outside the range of this search"
    return {name: found[name] for name in space.parameters if name in found}, ""
