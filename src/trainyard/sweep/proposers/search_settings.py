"""Settings of a search: `hydra.sweeper` of `hydra/sweeper=search`, and the pruner of a grid."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from trainyard.checks import choice, integer, number, seed_number
from trainyard.config.build import build, is_node
from trainyard.config.sweepers import SAMPLER_ARGUMENTS
from trainyard.errors import ConfigError
from trainyard.sweep.goals import Goals
from trainyard.sweep.grid_settings import text_of, when_of
from trainyard.sweep.proposers.ahead import AheadSource
from trainyard.sweep.proposers.earlier import FROM, Earlier, given_points
from trainyard.sweep.proposers.given_settings import SEED, SWEEPER, first_seed, given_settings, params_of
from trainyard.sweep.proposers.goal_settings import DIRECTIONS, direction_of, goals_of
from trainyard.sweep.proposers.pruner_settings import build_pruner, no_pruner, pruner_node, require_optuna
from trainyard.sweep.proposers.quiet import quiet
from trainyard.sweep.proposers.repeats import RepeatedSource
from trainyard.sweep.proposers.sampling import CONSTRAINTS, MakeSampler, SamplerSource
from trainyard.sweep.proposers.search import Limits, SearchProposer
from trainyard.sweep.proposers.source import ListSource, Source
from trainyard.sweep.proposers.space import Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SAMPLER = f"{SWEEPER}.sampler"
REPEATS = f"{SWEEPER}.repeats"
ORDERS = ("any", "job")
LEAST = 10  # trials that a rung needs to be learned from, where the sampler does not say
WIDTH = "null for the number of slots times hydra.sweeper.together"
TRIALS = 100  # where neither n_trials nor timeout nor target ends a search


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search, with their forms checked. docs/search.md describes them.

    Attributes:
        sampler: node of the sampler, without its seed.
        seed: the seed of the search.
        pruner: node of the pruner; None for none.
        direction: `minimize` or `maximize`: of the first of several objectives.
        goals: several objectives, or constraints; None for a single objective without constraints.
        limits: the conditions for the end of the search.
        order: `any` or `job`.
        n_jobs: the number of concurrent trials that `order=job` allows; None for the maximum number of slots.
        params: overrides in the config.
        when: conditional keys.
        together: the number of trials that are requested together for each free slot.
        enqueue: points to try first.
        warm_start: the directory of a sweep, or an MLflow experiment or run, from which to learn.
        repeats: the number of seeds of each configuration.
        learn_from: `rung` or `all`: see `SamplerSource.at_rung`.
    """

    sampler: Mapping[str, Any]
    seed: int
    pruner: Mapping[str, Any] | None
    direction: str
    goals: Goals | None
    limits: Limits
    order: Literal["any", "job"]
    n_jobs: int | None
    params: Mapping[str, Any]
    when: Mapping[str, tuple[str, ...]]
    together: int = 1
    enqueue: Any = None
    warm_start: Any = None
    repeats: int = 1
    learn_from: Literal["rung", "all"] = "all"

    @classmethod
    def from_config(cls, given: Mapping[str, Any], config: DictConfig, varying: Collection[str] = ()) -> SearchSettings:
        """Return the settings in `hydra.sweeper`.

        Args:
            given: the settings.
            config: the config of the entire sweep.
            varying: the keys that differ between jobs.

        Raises:
            ConfigError: a setting is unknown or has another form, or Optuna is not installed.
        """
        require_optuna("hydra/sweeper", "search")
        values = given_settings(given, "search")
        sampler: Any = values.get("sampler")
        if not is_node(sampler):
            accepted = (
                "a sampler: hydra/sweeper/sampler=tpe, random, qmc, cmaes, gp or nsgaii, or a mapping with _target_"
            )
            raise ConfigError(SAMPLER, sampler, accepted)
        for name, hint in SAMPLER_ARGUMENTS.items():
            if str(sampler["_target_"]).startswith("optuna.") and sampler.get(name) is not None:
                raise ConfigError(f"{SAMPLER}.{name}", sampler[name], "null", hint=hint)
        limits = _limits(values)
        goals = goals_of(values, config)
        pruner = pruner_node(values.get("pruner"), config, varying)
        n_jobs = values.get("n_jobs")
        return cls(
            {key: value for key, value in sampler.items() if key != "seed"},
            seed_number(f"{SAMPLER}.seed", sampler.get("seed")),
            pruner,
            direction_of(values.get("direction"), config) if goals is None else goals.directions[0],
            goals,
            limits,
            order_of(values.get("order")),
            None if n_jobs is None else integer(f"{SWEEPER}.n_jobs", n_jobs, at_least=1, other=WIDTH),
            params_of(values.get("params")),
            when_of(values.get("when")),
            integer(f"{SWEEPER}.together", values.get("together", 1), at_least=1),
            values.get("enqueue"),
            values.get("warm_start"),
            integer(REPEATS, values.get("repeats", 1), at_least=1),
            _learn_from(values.get("learn_from"), sampler, pruner, goals),
        )._checked()

    def _checked(self) -> SearchSettings:
        """Return these settings, if they are compatible.

        Raises:
            ConfigError: several objectives, or constraints, are given with settings that support only a single
                objective.
        """
        if self.goals is None:
            return self
        name = str(self.sampler["_target_"]).rpartition(".")[2]
        goals = "several objectives" if self.goals.several else "constraints"
        why = f"the search has {goals}"
        if self.goals.several and self.pruner is not None:
            hint = "A pruner needs a single objective: use hydra.sweeper.objective=null and a single direction."
            raise no_pruner(self.pruner["_target_"], why, hint)
        if self.goals.several and self.limits.target is not None:
            raise ConfigError(f"{SWEEPER}.target", self.limits.target, f"null, because {why}")
        if self.repeats > 1:
            hint = (
                "Configurations with repeats are compared by the mean of a single objective: use objective=… and "
                "direction=… without hydra.sweeper.objective and hydra.sweeper.constraints."
            )
            raise ConfigError(REPEATS, self.repeats, f"1, because {why}", hint=hint)
        if name == "CmaEsSampler":
            options = "tpe, gp, nsgaii, random or qmc"
            raise ConfigError("hydra/sweeper/sampler", "cmaes", f"a sampler that supports {goals}: {options}")
        return self

    def proposer(self, arguments: Sequence[str], loader: ConfigLoader, config: DictConfig) -> SearchProposer:
        """Return the proposer of the search.

        Args:
            arguments: the overrides of the command line.
            loader: Hydra's loader.
            config: the config of the entire sweep.

        Raises:
            ConfigError: an override, the sampler or the pruner is invalid.
        """
        space = Space(
            [*(f"{key}={text_of(value)}" for key, value in self.params.items()), *arguments], self.when, loader, config
        )
        sign = DIRECTIONS[self.direction]
        target = str(self.sampler["_target_"])
        given, earlier = given_points(self.enqueue, space), Earlier.read(self.warm_start, space, config, self.goals)
        name = target.rpartition(".")[2]
        for line in earlier.told:
            print(line, flush=True)
        if earlier.trials and name in UNTAUGHT:
            print(
                f"  {UNTAUGHT[name]} does not learn from a warm start. Use hydra/sweeper/sampler=tpe or gp.", flush=True
            )
        source: Source = SamplerSource(
            space,
            self._sampler(),
            seed=self.seed,
            sign=sign,
            goals=self.goals,
            one_seed=target.endswith(".QMCSampler"),
            given=given,
            earlier=earlier.frozen(space, self.goals),
            knows_noise=target.endswith(".GPSampler") and not self.sampler.get("deterministic_objective"),
            knows_pruned=target.endswith(".TPESampler") or bool(self.sampler.get("consider_pruned_trials")),
            learns=not target.endswith(".RandomSampler"),
            at_rung=max(1, int(self.sampler.get("n_startup_trials", LEAST))) if self.learn_from == "rung" else None,
        )
        source = AheadSource(source, exact=self.order == "job")
        if self.repeats > 1:
            source = RepeatedSource(source, self.repeats, self._first_seed(space, config), sign)
        identity = {
            "sampler": self.sampler,
            "seed": self.seed,
            "pruner": self.pruner,
            "space": space.texts,
            "when": {key: list(each) for key, each in self.when.items()},
            "order": self.order,
            **({"direction": self.direction} if self.goals is None else self.goals.identity),
            "n_jobs": self.n_jobs,
            "together": self.together,
            "repeats": self.repeats,
            "enqueue": given,
            "warm_start": [list(each) for each in earlier.trials],
            **({"learn_from": self.learn_from} if self.learn_from == "rung" else {}),
            **({} if self.warm_start is None else {FROM: str(self.warm_start)}),
            "versions": {"optuna": version("optuna")},
        }
        return SearchProposer(
            source,
            build_pruner(self.pruner),
            sign=sign,
            goals=self.goals,
            limits=self.limits,
            order=self.order,
            together=self.together,
            width=self.n_jobs,
            identity=identity,
        )

    def _first_seed(self, space: Space, config: DictConfig) -> int:
        """Return the seed of the first repeat of a configuration, from the command line or else from the config.

        Raises:
            ConfigError: the seed is searched, or there is none.
        """
        if SEED in space.parameters:
            hint = "Repeats of a configuration differ in the seed."
            raise ConfigError(REPEATS, self.repeats, f"1, because {SEED} is searched", hint=hint)
        found = first_seed(space.fixed, config)
        if found is None:
            raise ConfigError(REPEATS, self.repeats, f"1, because the config of this application has no {SEED}")
        return found

    def _sampler(self) -> MakeSampler:
        further: dict[str, Callable[..., Any]] = {}
        if self.goals is not None and self.goals.constraints and int(version("optuna").partition(".")[0]) < 5:
            further["constraints_func"] = _violations  # a sampler before 5.0 looks at violations only if it has one

        def make(seed: int) -> Any:
            return build({**self.sampler, **further, "seed": seed}, SAMPLER)

        from optuna.samplers import BaseSampler

        with quiet():
            found = make(0)  # so that an error is reported before any job starts
        if not isinstance(found, BaseSampler):
            accepted = "the class of a sampler of Optuna, with an argument seed"
            raise ConfigError(SAMPLER, self.sampler["_target_"], accepted)
        return make


UNTAUGHT = {
    "RandomSampler": "random",
    "QMCSampler": "qmc",
    "CmaEsSampler": "cmaes",
    "NSGAIISampler": "nsgaii",
    "NSGAIIISampler": "NSGAIIISampler",
}
"""Classes of samplers that use no trials, or only those that they have suggested, each with its name for users."""


def _learn_from(
    value: Any, sampler: Mapping[str, Any], pruner: Mapping[str, Any] | None, goals: Goals | None
) -> Literal["rung", "all"]:
    """Return `rung` or `all`, from which the sampler learns; `auto` is `rung` if possible.

    Raises:
        ConfigError: the value is something else, or `rung` is not possible.
    """
    given = choice(f"{SWEEPER}.learn_from", value or "auto", ("auto", "rung", "all"), other="null for auto")
    can_be = (
        goals is None
        and str(sampler["_target_"]).endswith(".TPESampler")
        and pruner is not None
        and str(pruner["_target_"]).endswith((".Asha", ".Hyperband"))
    )
    if given == "rung" and not can_be:
        hint = "'rung' needs the sampler tpe, the pruner asha or hyperband, and one objective without constraints."
        raise ConfigError(f"{SWEEPER}.learn_from", given, "auto or all", hint=hint)
    return "rung" if can_be and given != "all" else "all"


def _violations(trial: FrozenTrial) -> Sequence[float]:
    return list(trial.system_attrs[CONSTRAINTS])


def grid_proposer(
    jobs: Sequence[Sequence[str]], pruner: Mapping[str, Any], direction: Any, order: Any, config: DictConfig
) -> SearchProposer:
    """Return the proposer of a grid whose jobs a pruner can stop.

    Args:
        jobs: the overrides of each job.
        pruner: the node of the pruner, from `pruner_node`.
        direction, order: see `hydra.sweeper`.
        config: the config of the entire sweep.

    Raises:
        ConfigError: a setting has another form.
    """
    own, which = direction_of(direction, config), order_of(order)
    return SearchProposer(
        ListSource(jobs),
        build_pruner(pruner),
        sign=DIRECTIONS[own],
        limits=Limits(len(jobs)),
        order=which,
        identity={"pruner": pruner, "order": which, "direction": own},
    )


def order_of(value: Any) -> Literal["any", "job"]:
    """Return `hydra.sweeper.order`; None is `any`.

    Raises:
        ConfigError: the value is something else.
    """
    return choice(f"{SWEEPER}.order", value or "any", ORDERS, other="null for any")  # type: ignore[return-value]


def _limits(values: Mapping[str, Any]) -> Limits:
    n_trials, timeout, target = (values.get(key) for key in ("n_trials", "timeout", "target"))
    endless = timeout is None and target is None
    return Limits(
        (TRIALS if endless else None)
        if n_trials is None
        else integer(
            f"{SWEEPER}.n_trials", n_trials, at_least=1, other=f"null ({TRIALS}, or no limit with timeout or target)"
        ),
        None
        if timeout is None
        else number(f"{SWEEPER}.timeout", timeout, above=0, unit="seconds", other="null for no limit"),
        None if target is None else number(f"{SWEEPER}.target", target, other="null for none"),
    )
