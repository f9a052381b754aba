"""Settings of a search: `hydra.sweeper` of `hydra/sweeper=search`, and the pruner of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

from hydra.core.config_loader import ConfigLoader
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainyard.checks import choice, integer, number, seed_number
from trainyard.config.build import build, is_node
from trainyard.errors import ConfigError
from trainyard.sweep.grid_settings import when_of
from trainyard.sweep.proposers.earlier import Earlier, given_points
from trainyard.sweep.proposers.pruners import NoPruner, Pruner
from trainyard.sweep.proposers.quiet import quiet
from trainyard.sweep.proposers.sampling import MakeSampler, SamplerSource
from trainyard.sweep.proposers.search import Limits, ListSource, SearchProposer
from trainyard.sweep.proposers.space import Space
from trainyard.sweep.sweepable import as_sweepable

SWEEPER = "hydra.sweeper"
PRUNER = f"{SWEEPER}.pruner"
SAMPLER = f"{SWEEPER}.sampler"
DIRECTIONS = {"minimize": 1.0, "maximize": -1.0}
ORDERS = ("any", "job")
TRIALS = 100  # where neither n_trials nor timeout nor target ends a search

NOT_HERE = {
    "study_name": "The sweep's directory is the study: hydra.sweep.dir.",
    "storage": "The sweep's directory is the storage: the same hydra.sweep.dir goes on with it.",
    "max_failure_rate": "A failed trial does not end a search.",
    "search_space": "Give ranges as overrides, on the command line or in hydra.sweeper.params.",
    "custom_search_space": "Conditional keys are in hydra.sweeper.when.",
    "max_batch_size": "Trials begin one by one, as slots become free.",
}
"""Settings of Hydra's Optuna plugin, or of the grid, that a search has other means for."""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search, with their forms checked. docs/search.md describes them.

    Attributes:
        sampler: node of the sampler, without its seed.
        seed: the seed of the search.
        pruner: node of the pruner; None for none.
        direction: `minimize` or `maximize`.
        limits: when the search ends.
        order: `any` or `job`.
        n_jobs: the trials at work at a time that `order=job` allows for; None for the number of slots.
        params: overrides that stand in the config.
        when: conditional keys.
        together: the trials that are asked for together for each free slot.
        enqueue: points to try first.
        warm_start: the directory of a sweep to learn from.
    """

    sampler: Mapping[str, Any]
    seed: int
    pruner: Mapping[str, Any] | None
    direction: str
    limits: Limits
    order: Literal["any", "job"]
    n_jobs: int | None
    params: Mapping[str, Any]
    when: Mapping[str, tuple[str, ...]]
    together: int = 1
    enqueue: Any = None
    warm_start: Any = None

    @classmethod
    def from_config(cls, given: Mapping[str, Any], config: DictConfig) -> SearchSettings:
        """Return the settings in `hydra.sweeper`.

        Args:
            given: the settings.
            config: the config of the whole sweep.

        Raises:
            ConfigError: one of them is unknown, or has another form; or Optuna is not installed.
        """
        require_optuna("hydra/sweeper", "search")
        values = {key: _plain(value) for key, value in given.items()}
        for key, value in values.items():
            if key in NOT_HERE and value is not None:
                raise ConfigError(f"{SWEEPER}.{key}", value, "null", hint=NOT_HERE[key])
            if key not in NOT_HERE and key not in KNOWN:
                accepted = f"a setting of the search: {', '.join(KNOWN)}"
                raise ConfigError(SWEEPER, key, accepted, options=KNOWN)
        sampler: Any = values.get("sampler")
        if not is_node(sampler):
            accepted = (
                "a sampler: hydra/sweeper/sampler=tpe, random, qmc, cmaes, gp or nsgaii, or a mapping with _target_"
            )
            raise ConfigError(SAMPLER, sampler, accepted)
        limits = _limits(values)
        n_jobs = values.get("n_jobs")
        return cls(
            {key: value for key, value in sampler.items() if key != "seed"},
            seed_number(f"{SAMPLER}.seed", sampler.get("seed")),
            pruner_node(values.get("pruner"), config),
            direction_of(values.get("direction"), config),
            limits,
            order_of(values.get("order")),
            None if n_jobs is None else integer(f"{SWEEPER}.n_jobs", n_jobs, at_least=1, other="null for the slots"),
            values.get("params") or {},
            when_of(values.get("when")),
            integer(f"{SWEEPER}.together", values.get("together", 1), at_least=1),
            values.get("enqueue"),
            values.get("warm_start"),
        )

    def proposer(self, arguments: Sequence[str], loader: ConfigLoader, config: DictConfig) -> SearchProposer:
        """Return the proposer of the search.

        Args:
            arguments: the overrides of the command line.
            loader: Hydra's loader.
            config: the config of the whole sweep.

        Raises:
            ConfigError: an override, the sampler or the pruner cannot work.
        """
        space = Space(
            [*(f"{key}={value}" for key, value in self.params.items()), *arguments], self.when, loader, config
        )
        sign = DIRECTIONS[self.direction]
        target = str(self.sampler["_target_"])
        given, earlier = given_points(self.enqueue, space), Earlier.read(self.warm_start, space)
        for line in earlier.told:
            print(line, flush=True)
        source = SamplerSource(
            space,
            self._sampler(),
            seed=self.seed,
            sign=sign,
            one_seed=target.endswith(".QMCSampler"),
            given=given,
            earlier=earlier.frozen(space),
            knows_pruned=target.endswith(".TPESampler") or bool(self.sampler.get("consider_pruned_trials")),
        )
        identity = {
            "sampler": self.sampler,
            "seed": self.seed,
            "pruner": self.pruner,
            "space": space.texts,
            "when": {key: list(each) for key, each in self.when.items()},
            "order": self.order,
            "direction": self.direction,
            "n_jobs": self.n_jobs,
            "together": self.together,
            "enqueue": given,
            "warm_start": [list(each) for each in earlier.trials],
            "versions": {"optuna": version("optuna")},
        }
        return SearchProposer(
            source,
            build_pruner(self.pruner),
            sign=sign,
            limits=self.limits,
            order=self.order,
            together=self.together,
            width=self.n_jobs,
            identity=identity,
        )

    def _sampler(self) -> MakeSampler:
        def make(seed: int) -> Any:
            return build({**self.sampler, "seed": seed}, SAMPLER)

        with quiet():
            make(0)  # an error in it is told before anything starts
        return make


KNOWN = (
    *("sampler", "pruner", "direction", "n_trials", "n_jobs", "timeout", "target", "order", "params", "when"),
    *("together", "enqueue", "warm_start"),
)


def grid_proposer(
    jobs: Sequence[Sequence[str]], pruner: Mapping[str, Any], direction: Any, order: Any, config: DictConfig
) -> SearchProposer:
    """Return the proposer of a grid that a pruner takes jobs out of.

    Args:
        jobs: the overrides of each job.
        pruner: the pruner's node, as `pruner_node` returns it.
        direction, order: as in `hydra.sweeper`.
        config: the config of the whole sweep.

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


def check_application(function: TaskFunction, pruner: Mapping[str, Any] | None) -> None:
    """Check that the jobs of an application can pause, if a pruner lets them.

    Raises:
        ConfigError: they cannot.
    """
    if pruner is not None and not as_sweepable(function).resumes:
        raise ConfigError(
            "hydra/sweeper/pruner",
            str(pruner["_target_"]).rpartition(".")[2],
            "none, with an application that cannot go on from a checkpoint",
            hint="See docs/sweeps.md on `resumes`.",
        )


def require_optuna(key: str, given: object) -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("optuna") is None:
        raise ConfigError(key, given, "what is installed", hint="It needs Optuna: pip install 'trainyard[search]'.")


def order_of(value: Any) -> Literal["any", "job"]:
    """Return `hydra.sweeper.order`; None is `any`.

    Raises:
        ConfigError: it is something else.
    """
    return choice(f"{SWEEPER}.order", value or "any", ORDERS)  # type: ignore[return-value]


def direction_of(value: Any, config: DictConfig) -> str:
    """Return `hydra.sweeper.direction`; None is the config's own `direction`, and without one `minimize`.

    Raises:
        ConfigError: it is neither of the two.
    """
    own = OmegaConf.select(config, "direction", throw_on_resolution_failure=False) if value is None else value
    return choice(f"{SWEEPER}.direction", str(own or "minimize").lower(), DIRECTIONS)


def pruner_node(value: Any, config: DictConfig) -> dict[str, Any] | None:
    """Return the node of a pruner with what the loop of the config says in the place of `auto`.

    Args:
        value: the node; None for no pruner.
        config: the config of the whole sweep.

    Raises:
        ConfigError: it is no node, or the loop does not validate at its rungs.
    """
    node = _plain(value)
    if node is None:
        return None
    if not is_node(node):
        accepted = (
            "a pruner: hydra/sweeper/pruner=none, asha, hyperband, median, percentile, wilcoxon, threshold or patient"
        )
        raise ConfigError(PRUNER, node, accepted)
    if str(node["_target_"]).endswith(".NoPruner"):
        return None
    loop: Any = OmegaConf.select(config, "loop", throw_on_resolution_failure=False)
    loop = OmegaConf.to_container(loop, resolve=True) if isinstance(loop, DictConfig) else {}
    unit = "iter" if "max_iters" in loop else "epoch"
    interval, begin = loop.get("val_interval", 1), loop.get("val_begin", 1)
    first = -(-begin // interval) * interval if isinstance(interval, int) and isinstance(begin, int) else 1
    auto = {"by": unit, "first": first, "every": interval, "last": loop.get(f"max_{unit}s")}
    node = {key: auto.get(key, value) if value == "auto" else value for key, value in node.items()}
    if loop and node.get("by", "epoch") != unit:
        raise ConfigError(f"{PRUNER}.by", node.get("by", "epoch"), f"{unit}, which this loop counts", options=[unit])
    for at in build_pruner(node).places if loop else ():
        if not loop.get("dynamic_intervals") and (at < begin or at % interval) and at < auto["last"]:
            raise ConfigError(
                f"{PRUNER}.first",
                node.get("first"),
                f"rungs at which the objective is reported: multiples of loop.val_interval={interval} from {first} on",
                hint=f"At {unit} {at} there is no validation.",
            )
    return node


def build_pruner(node: Mapping[str, Any] | None) -> Pruner:
    """Return the pruner of a node.

    Raises:
        ConfigError: an argument is unknown, or out of its range.
    """
    if node is None:
        return NoPruner()
    if str(node["_target_"]).startswith("trainyard."):
        found: Pruner = build(node, PRUNER)
        return found
    require_optuna(PRUNER, node["_target_"])
    from trainyard.sweep.proposers.stopping import StoppingPruner

    rungs = {key: node[key] for key in ("last", "first", "every", "by") if key in node}
    try:
        return StoppingPruner(build({key: node[key] for key in node.keys() - rungs.keys()}, PRUNER), **rungs)
    except ConfigError as error:
        raise error if error.key.startswith(PRUNER) else error.under(PRUNER) from None


def _limits(values: Mapping[str, Any]) -> Limits:
    n_trials, timeout, target = (values.get(key) for key in ("n_trials", "timeout", "target"))
    endless = timeout is None and target is None
    return Limits(
        (TRIALS if endless else None)
        if n_trials is None
        else integer(f"{SWEEPER}.n_trials", n_trials, at_least=1, other="null for no limit"),
        None
        if timeout is None
        else number(f"{SWEEPER}.timeout", timeout, above=0, unit="seconds", other="null for no limit"),
        None if target is None else number(f"{SWEEPER}.target", target, other="null for none"),
    )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
