"""Settings of pruners: `hydra.sweeper.pruner`, of searches and grids."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import Any

from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainyard.checks import choice, integer
from trainyard.config.build import build, is_node
from trainyard.config.sweepers import option_of
from trainyard.errors import ConfigError
from trainyard.sweep.conditions import is_in
from trainyard.sweep.proposers.given_settings import SWEEPER, plain
from trainyard.sweep.proposers.pruners import UNITS, NoPruner, Pruner
from trainyard.sweep.proposers.quiet import quiet
from trainyard.sweep.sweepable import as_sweepable

PRUNER = f"{SWEEPER}.pruner"
_GROUP = "hydra/sweeper/pruner"


def no_pruner(target: object, why: str, hint: str = "") -> ConfigError:
    """Return the error about a pruner where there can be none.

    Args:
        target: its `_target_`.
        why: the reason, as a clause.
        hint: an additional sentence.
    """
    return ConfigError(_GROUP, option_of(target), f"none, because {why}", hint=hint)


def check_application(function: TaskFunction, pruner: Mapping[str, Any] | None) -> None:
    """Check that the jobs of an application can pause, if there is a pruner.

    Raises:
        ConfigError: they cannot pause.
    """
    if pruner is not None and not as_sweepable(function).resumes:
        why = "this application cannot resume from a checkpoint"
        raise no_pruner(pruner["_target_"], why, "See `resumes` in docs/sweeps.md.")


def require_optuna(key: str, given: object) -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("optuna") is None:
        raise ConfigError(
            key,
            given,
            "an option whose packages are installed",
            hint="This option needs Optuna: pip install 'trainyard[search]'.",
        )


def pruner_node(value: Any, config: DictConfig, varying: Collection[str] = ()) -> dict[str, Any] | None:
    """Return the node of a pruner, with the values of the loop for `auto`.

    Args:
        value: the node; None for no pruner.
        config: the config of the entire sweep.
        varying: the keys that differ between jobs. If the loop may differ, its length is not compared with the rungs.

    Raises:
        ConfigError: it is not a node, or the loop does not validate at its rungs.
    """
    node = plain(value)
    if node is None:
        return None
    if not is_node(node):
        accepted = (
            "a pruner: hydra/sweeper/pruner=none, asha, hyperband, median, percentile, wilcoxon, threshold or patient, "
            "a mapping with _target_, or null"
        )
        raise ConfigError(PRUNER, node, accepted)
    if str(node["_target_"]).endswith(".NoPruner"):
        return None
    loop: Any = OmegaConf.select(config, "loop", throw_on_resolution_failure=False)
    loop = OmegaConf.to_container(loop, resolve=True) if isinstance(loop, DictConfig) else {}
    unit = "iter" if "max_iters" in loop else "epoch"
    interval = integer("loop.val_interval", loop.get("val_interval", 1), at_least=1)
    begin = integer("loop.val_begin", loop.get("val_begin", 1), at_least=1)
    first = -(-begin // interval) * interval
    last = loop.get(f"max_{unit}s")  # None: unknown
    if last is not None:
        integer(f"loop.max_{unit}s", last, at_least=1)
    auto = {"by": unit, "first": first, "every": interval, "last": "auto" if last is None else last}
    if not _is_own(node):  # the rungs are not an argument of Optuna's class
        node = {**dict.fromkeys(auto, "auto"), **node}
    varies = any(is_in(key, part) for key in varying for part in ("loop", "experiment"))
    is_auto = node.get("first") == node.get("last", "auto") == "auto"
    if is_auto and last is not None and first > last and not varies:
        key, value, most = "val_begin", begin, last - last % interval
        if interval > last:
            key, value, most = "val_interval", interval, last
        accepted = f"at most {most} with {_GROUP}={option_of(node['_target_'])}"
        hint = f"Otherwise, the training (loop.max_{unit}s={last}) would end before the first rung."
        raise ConfigError(f"loop.{key}", value, accepted, hint=hint)
    for key, given in node.items():
        if key in auto and given != "auto":
            _check_rungs(key, given)
    node = {key: auto.get(key, value) if value == "auto" else value for key, value in node.items()}
    if loop and node.get("by", "epoch") != unit:
        accepted = f"{unit}, the unit of this loop, or auto"
        raise ConfigError(f"{PRUNER}.by", node.get("by", "epoch"), accepted, options=[unit])
    for place, at in enumerate(build_pruner(node).places if loop else ()):
        is_end = last is not None and at >= last
        if not loop.get("dynamic_intervals") and (at < begin or at % interval) and not is_end:
            key = "every" if place and "every" in node else "first"
            multiples = f"multiples of loop.val_interval={interval} from {first} on, or auto"
            accepted = f"rungs at which the objective is reported: {multiples}"
            hint = f"There is no validation at {'epoch' if unit == 'epoch' else 'iteration'} {at}."
            raise ConfigError(f"{PRUNER}.{key}", node.get(key, 1), accepted, hint=hint)
    return node


def _check_rungs(key: str, value: Any) -> None:
    """Check a setting of rungs that is not `auto`.

    Raises:
        ConfigError: it is not valid.
    """
    if key == "by":
        choice(f"{PRUNER}.by", value, UNITS, other="auto")
    else:
        integer(f"{PRUNER}.{key}", value, at_least=1, other="auto")


def _is_own(node: Mapping[str, Any]) -> bool:
    return str(node["_target_"]).startswith("trainyard.")


def build_pruner(node: Mapping[str, Any] | None) -> Pruner:
    """Return the pruner of a node.

    Raises:
        ConfigError: an argument is unknown, or out of its range.
    """
    if node is None:
        return NoPruner()
    if _is_own(node):
        found: Pruner = build(node, PRUNER)
        return found
    require_optuna(_GROUP, option_of(node["_target_"]))
    from optuna.pruners import BasePruner

    from trainyard.sweep.proposers.stopping import StoppingPruner

    if str(node["_target_"]).endswith(".ThresholdPruner") and node.get("lower") is None and node.get("upper") is None:
        raise ConfigError(f"{PRUNER}.lower", None, f"a number for {PRUNER}.lower or {PRUNER}.upper, or for both")
    rungs = {key: node[key] for key in ("last", "first", "every", "by") if key in node}
    try:
        with quiet():
            pruner = build({key: each for key, each in node.items() if key not in rungs}, PRUNER)
        if not isinstance(pruner, BasePruner):
            raise ConfigError(PRUNER, node["_target_"], "the class of a pruner of Optuna")
        return StoppingPruner(pruner, **rungs)
    except ConfigError as error:
        raise error if error.key.startswith(PRUNER) else error.under(PRUNER) from None
