"""Sanity check before the training: a batch of validation, a step of training, a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainyard import rng_state
from trainyard.errors import ConfigError, UnknownMetricError
from trainyard.runner import training_check
from trainyard.runner.batch_checks import check_last_batch, check_training_targets

if TYPE_CHECKING:
    from trainyard.runner.parts import Parts
    from trainyard.runner.runner import Runner

log = logging.getLogger(__name__)


def sanity_check(runner: Runner, *, resumes: bool = False) -> None:
    """Run one batch through validation, and one step of the training, so that errors appear before the training.

    The run is not changed, and no files remain.

    Args:
        runner: a Runner that is ready to train.
        resumes: whether it continues from a checkpoint.

    Raises:
        ConfigError: no metric computes the objective, or a value that a schedule or a hook monitors; or a part has a
            state that a checkpoint cannot contain.
    """
    names, none = list[str](), "no validation metrics: the data has no validation set"
    known = names
    with rng_state.seeded(runner.seed):
        getattr(runner.train_loop, "sanity_check", _nothing)(runner)
        if not runner.stacked:
            check_last_batch(runner, runner.device)
        if runner.has_split("val"):
            none = "no metrics. Add some with metric=… on the command line, or with Runner(metrics={…}) in Python"
            names = runner.val_loop.sanity_check(runner)
            further = [getattr(hook, "metric_names", _nothing)(names) for hook in runner.dispatch.hooks.values()]
            known = [*names, *(name for more in further for name in more)]
        elif results := getattr(runner.train_loop, "results", ()):  # of a loop without data
            known = names = [f"val/{name}" for name in results]
        if not runner.stacked:
            check_training_targets(runner, runner.device)
    for name, hook in runner.dispatch.hooks.items():
        try:
            getattr(hook, "sanity_check", _nothing)(runner)
        except ConfigError as error:
            raise error.under(f"hook.{name}") from None
    for key, name in watched(runner):
        if key == "objective":
            if (runner.has_split("val") or names) and name not in names:
                raise UnknownMetricError(key, name, f"This run computes {', '.join(names) or none}", options=names)
        elif name not in known and not name.startswith("train/"):
            raise UnknownMetricError(key, name, f"This run computes {', '.join(known) or none}", options=known)
    if not getattr(runner.schedule, "constant", True) and not runner.dispatch.applies_schedule:
        log.warning(
            "The schedule has no effect, because the hook param_schedule is missing. This hook is part of hook=default."
        )
    if runner.settings["sanity_check"]:
        training_check.check(runner, resumes=resumes)


def watched(runner: Parts) -> Iterator[tuple[str, str]]:
    """Yield the required metrics, each with its key in the config."""
    objective = runner.members[0].objective.name
    yield "objective", objective
    parts: dict[str, Any] = {f"hook.{name}": hook for name, hook in runner.dispatch.hooks.items()}
    for key, part in (parts | {"schedule": runner.schedule}).items():
        if hasattr(part, "monitor"):
            yield f"{key}.monitor", part.monitor or objective
        place = getattr(part, "config_key", key)
        for name, argument in getattr(part, "monitors", {}).items():
            yield f"{place}.{argument}", name


def _nothing(*args: Any) -> tuple[()]:
    return ()
