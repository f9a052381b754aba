"""What is tried before hours of training."""

from __future__ import annotations

import logging
from typing import Any

from trainyard.errors import ConfigError
from trainyard.runner import random
from trainyard.runner.contract import RunState

log = logging.getLogger(__name__)


def rehearse(runner: RunState) -> None:
    """One batch through validation, so that what it cannot do is known before hours of training.

    Raises:
        ConfigError: nobody computes the objective, or what a schedule or a hook monitors.
    """
    objective = runner.members[0].objective.name
    parts: dict[str, Any] = {f"hook.{name}": hook for name, hook in runner.dispatch.hooks.items()}
    parts["schedule"] = runner.schedule
    watched = {f"{key}.monitor": it.monitor or objective for key, it in parts.items() if hasattr(it, "monitor")}
    names, none = list[str](), "none, since the data has no validation"
    if runner.has_split("val"):
        watched = {"objective": objective} | watched
        none = "it has none; metrics={...} gives it some"
        with random.seeded(runner.seed):
            names = runner.val_loop.rehearse(runner)
    for key, name in watched.items():
        if name not in names and (key == "objective" or not name.startswith("train/")):
            raise ConfigError(key, name, f"a metric of this run: {', '.join(names) or none}", options=names)
    if not getattr(runner.schedule, "constant", True) and "param_schedule" not in runner.dispatch.hooks:
        log.warning("Nothing applies the schedule: there is no hook param_schedule (hook=[default,…] has it).")
