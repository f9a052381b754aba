"""Settings for the goals of a search: `objective`, `direction` and `constraints` in `hydra.sweeper`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainyard.checks import choice
from trainyard.errors import ConfigError
from trainyard.sweep.goals import CONSTRAINTS, OBJECTIVE, Constraint, Goals
from trainyard.sweep.proposers.given_settings import SWEEPER

DIRECTIONS = {"minimize": 1.0, "maximize": -1.0}


def direction_of(value: Any, config: DictConfig, other: str = "null for the direction of the training") -> Any:
    """Return `hydra.sweeper.direction`; None means `direction` of the config, or `minimize` without it.

    Args:
        value: the given value.
        config: the config of the entire sweep.
        other: other values of `hydra.sweeper.direction` that are accepted, for the message.

    Raises:
        ConfigError: it is neither of the two.
    """
    own = _of_config("direction", config) if value is None else value
    name = str(own or "minimize").rpartition(".")[2].lower()
    if value is None:
        return choice("direction", name, DIRECTIONS)
    return choice(f"{SWEEPER}.direction", name, DIRECTIONS, other=other)


def goals_of(values: Mapping[str, Any], config: DictConfig) -> Goals | None:
    """Return the goals of a search; None if it has one objective without constraints.

    Args:
        values: the settings in `hydra.sweeper`, in plain Python.
        config: the config of the entire sweep.

    Raises:
        ConfigError: a setting has another form, or the number of directions differs from that of the objectives.
    """
    names: Any = values.get("objective")
    directions: Any = values.get("direction")
    constraints = values.get("constraints")
    constraints = [constraints] if isinstance(constraints, str) else constraints
    if not isinstance(constraints, list | None):
        accepted = "a constraint such as 'model/parameters <= 1e5', a list of constraints, or null"
        raise ConfigError(CONSTRAINTS, constraints, accepted)
    bounds = tuple(map(Constraint.read, constraints or ()))
    if names is not None and not (_is_texts(names) and len(set(names)) == len(names) > 1):
        hint = "For a single objective, use objective=… and direction=… of the training."
        accepted = "a list of several different metrics, such as [val/accuracy,model/parameters], or null"
        raise ConfigError(OBJECTIVE, names, accepted, hint=hint)
    if directions == []:
        accepted = "minimize, maximize, a list with one for each metric, or null"
        raise ConfigError(f"{SWEEPER}.direction", directions, accepted)
    if isinstance(directions, list) and len(directions) == 1 and names is None:
        directions = directions[0]
    if not isinstance(directions, list) and names is None:
        if not bounds:
            return None
        name = str(_of_config("objective", config) or "objective")
        return Goals((name,), (direction_of(directions, config),), bounds)
    if names is None:
        if _of_config("objective", config) is not None:
            accepted = f"a list of {len(directions)} metrics, one per entry of {SWEEPER}.direction"
            raise ConfigError(OBJECTIVE, None, accepted)
        names = [f"objective.{index}" for index in range(len(directions))]
    if not isinstance(directions, list) or len(directions) != len(names):
        accepted = f"a list with minimize or maximize for each of the metrics {', '.join(names)}"
        raise ConfigError(f"{SWEEPER}.direction", directions, accepted)
    return Goals(tuple(names), tuple(direction_of(each or "", config, other="") for each in directions), bounds)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)


def _of_config(key: str, config: DictConfig) -> Any:
    return OmegaConf.select(config, key, throw_on_resolution_failure=False)
