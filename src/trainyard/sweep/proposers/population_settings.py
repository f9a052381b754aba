"""Settings of population-based training: `hydra.sweeper` of `hydra/sweeper=pbt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hydra.core.config_loader import ConfigLoader
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainyard.checks import choice, integer, is_number, seed_number
from trainyard.errors import ConfigError
from trainyard.sweep.grid_settings import text_of
from trainyard.sweep.proposers.given_settings import SEED, SWEEPER, first_seed, given_settings, mapping_of, params_of
from trainyard.sweep.proposers.goal_settings import DIRECTIONS, direction_of
from trainyard.sweep.proposers.population import Exploration, PopulationProposer
from trainyard.sweep.proposers.pruner_settings import require_optuna
from trainyard.sweep.proposers.space import Space
from trainyard.sweep.sweepable import as_sweepable

SHARED = ("loop", "loop.max_epochs", "loop.max_iters", "loop.val_interval", "loop.val_begin")
"""Keys on which the ends of generations depend, which all members share."""


@dataclass(frozen=True)
class PopulationSettings:
    """Settings of population-based training, with their forms checked. docs/population.md describes them.

    Attributes:
        population: the number of members.
        interval: the length of a generation in epochs or iterations, the unit of the loop.
        quantile: the fraction of members that are replaced.
        explore: the change of values by key: `perturb` or `resample`.
        factors: the factors with which numbers are perturbed.
        direction: `minimize` or `maximize`.
        seed: the seed of all random numbers.
        params: overrides in the config.
        places: the ends of generations.
        unit: the unit of the loop.
    """

    population: int
    interval: int
    quantile: float
    explore: Mapping[str, Literal["perturb", "resample"]]
    factors: tuple[float, float]
    direction: str
    seed: int
    params: Mapping[str, Any]
    places: tuple[int, ...]
    unit: Literal["epoch", "iter"]

    @classmethod
    def from_config(cls, given: Mapping[str, Any], config: DictConfig) -> PopulationSettings:
        """Return the settings of a config.

        Args:
            given: the settings.
            config: the config of the entire sweep.

        Raises:
            ConfigError: a setting is unknown, has another form, or is incompatible with the loop.
        """
        require_optuna("hydra/sweeper", "pbt")
        values = given_settings(given, "pbt")
        seed = values.get("seed")
        interval = integer(f"{SWEEPER}.interval", values.get("interval"), at_least=1)
        places, unit = _places(interval, config)
        population = integer(f"{SWEEPER}.population", values.get("population"), at_least=2)
        return cls(
            population,
            interval,
            _quantile(values.get("quantile", 0.25), population),
            _explore(values.get("explore")),
            _factors(values.get("factors", (0.8, 1.25))),
            direction_of(values.get("direction"), config),
            0 if seed is None else seed_number(f"{SWEEPER}.seed", seed, other="null for 0"),
            params_of(values.get("params")),
            places,
            unit,
        )

    def proposer(self, arguments: Sequence[str], loader: ConfigLoader, config: DictConfig) -> PopulationProposer:
        """Return the proposer.

        Args:
            arguments: the overrides of the command line.
            loader: Hydra's loader.
            config: the config of the entire sweep.

        Raises:
            ConfigError: an override is invalid, a key varies on which the ends of generations depend, or `explore`
                names a key that does not vary.
        """
        lines = [*(f"{key}={text_of(value)}" for key, value in self.params.items()), *arguments]
        space = Space(lines, {}, loader, config, "pbt")
        for text in space.texts:
            sign_and_key, _, values = text.partition("=")
            key = sign_and_key.lstrip("+")
            if key in SHARED and key in space.parameters:
                accepted = "a single value, because the generations of all members end at the same positions"
                raise ConfigError(key, values, accepted)
        for key in self.explore:
            if key not in space.parameters:
                accepted = f"a key that varies: {', '.join(space.parameters)}"
                raise ConfigError(f"{SWEEPER}.explore", key, accepted, options=list(space.parameters))
        settings = {"population": self.population, "interval": self.interval, "quantile": self.quantile}
        explored = {"explore": dict(self.explore), "factors": list(self.factors)}
        others = {"direction": self.direction, "seed": self.seed, "space": space.texts}
        return PopulationProposer(
            Exploration(space, self.explore, self.factors),
            self.population,
            self.places,
            self.unit,
            quantile=self.quantile,
            sign=DIRECTIONS[self.direction],
            seed=self.seed,
            seeds=self._seeds(space, config),
            identity={"sweeper": "pbt"} | settings | explored | others,
        )

    def _seeds(self, space: Space, config: DictConfig) -> Sequence[int]:
        first = None if SEED in space.parameters else first_seed(space.fixed, config)
        return () if first is None else range(first, first + self.population)


def check_application(function: TaskFunction) -> None:
    """Check that the jobs of an application can pause.

    Raises:
        ConfigError: they cannot.
    """
    if not as_sweepable(function).resumes:
        accepted = "grid or search, because this application cannot resume from a checkpoint"
        raise ConfigError("hydra/sweeper", "pbt", accepted, hint="See `resumes` in docs/sweeps.md.")


def _places(interval: int, config: DictConfig) -> tuple[tuple[int, ...], Literal["epoch", "iter"]]:
    """Return the ends of generations, and the unit of the loop.

    Raises:
        ConfigError: the length or the validations of the loop are unknown, or it does not validate at these positions,
            or ends before the first one.
    """
    key = f"{SWEEPER}.interval"
    loop: Any = OmegaConf.select(config, "loop", throw_on_resolution_failure=False)
    loop = OmegaConf.to_container(loop, resolve=True) if isinstance(loop, DictConfig) else {}
    unit: Literal["epoch", "iter"] = "iter" if "max_iters" in loop else "epoch"
    if f"max_{unit}s" not in loop:
        raise ConfigError(
            "hydra/sweeper", "pbt", "another sweeper, because pbt needs a loop with max_epochs or max_iters"
        )
    length = integer(f"loop.max_{unit}s", loop[f"max_{unit}s"], at_least=1)
    validated = integer("loop.val_interval", loop.get("val_interval", 1), at_least=1)
    begin = integer("loop.val_begin", loop.get("val_begin", 1), at_least=1)
    least = 1 if loop.get("dynamic_intervals") else validated
    if length <= least:
        accepted = (
            f"at least {least + 1} for hydra/sweeper=pbt, because each generation ends with a validation before the "
            "training ends"
        )
        raise ConfigError(f"loop.max_{unit}s", length, accepted)
    if not loop.get("dynamic_intervals") and interval % validated:
        accepted = f"a multiple of loop.val_interval={validated}, because each generation ends with a validation"
        raise ConfigError(key, interval, accepted)
    if interval >= length:
        raise ConfigError(
            key,
            interval,
            f"less than loop.max_{unit}s={length}",
            hint="Otherwise, no generation would end before the training ends.",
        )
    places = range(interval, length, interval)
    if begin > places[-1]:
        accepted = f"at most {places[-1]}, the last multiple of {key}={interval} before the end of the training"
        hint = "Otherwise, no generation would end with a validation."
        raise ConfigError("loop.val_begin", begin, accepted, hint=hint)
    return tuple(at for at in places if at >= begin), unit


def _quantile(value: Any, population: int) -> float:
    if not is_number(value, above=0, at_most=0.5):
        raise ConfigError(f"{SWEEPER}.quantile", value, "a fraction of the population, above 0 and at most 0.5")
    if int(population * float(value)) < 1:
        accepted = f"a fraction from 1/{population} to 0.5, so that at least one of {population} members is replaced"
        raise ConfigError(f"{SWEEPER}.quantile", value, accepted)
    return float(value)


def _factors(value: Any) -> tuple[float, float]:
    key, accepted = f"{SWEEPER}.factors", "two numbers above 0, one below 1 and one above: [0.8, 1.25]"
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_number, value)):
        raise ConfigError(key, value, accepted)
    low, high = sorted(map(float, value))
    if not 0 < low < 1 < high:
        raise ConfigError(key, value, accepted)
    return low, high


def _explore(value: Any) -> Mapping[str, Literal["perturb", "resample"]]:
    ways = ("perturb", "resample")
    form = "a mapping from keys to perturb or resample, such as {optim.lr: resample}"
    return {
        str(key): choice(f"{SWEEPER}.explore.{key}", each, ways)  # type: ignore[misc]
        for key, each in mapping_of("explore", value, form).items()
    }
