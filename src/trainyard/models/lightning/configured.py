"""Result of `configure_optimizers`: the optimizers, and the schedulers with the times of their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainyard.errors import ConfigError

KEY = "model.module.configure_optimizers"
ACCEPTED = (
    "an optimizer; a list of optimizers; a list of optimizers and a list of schedulers; a mapping with `optimizer` "
    "and, if there is a scheduler, `lr_scheduler`; or a list of such mappings"
)
KEYS = ("optimizer", "lr_scheduler", "monitor")
OPTIONS = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")


@dataclass(frozen=True)
class Scheduled:
    """A scheduler, and when it is stepped.

    Attributes:
        scheduler: the object, which writes into its optimizer.
        interval: "epoch" or "step", of the optimizer.
        frequency: the number of intervals between two steps.
        monitor: the name of the result that a step reads; None if it reads none.
    """

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None


@dataclass(frozen=True)
class Configured:
    """Optimizers and schedulers of a LightningModule."""

    optimizers: list[Optimizer]
    schedulers: list[Scheduled]


def parsed(given: Any) -> Configured:
    """Parse the result of `configure_optimizers`, in any of the forms that Lightning accepts.

    Raises:
        ConfigError: it has none of these forms.
    """
    if isinstance(given, Optimizer):
        return Configured([given], [])
    if isinstance(given, Mapping):
        return _of_mappings([given])
    if isinstance(given, Sequence) and given:
        if len(given) == 2 and isinstance(given[0], list | tuple):
            optimizers, schedulers = given
            schedulers = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
            return Configured([_optimizer(each) for each in optimizers], [_scheduled(each) for each in schedulers])
        if all(isinstance(each, Mapping) for each in given):
            return _of_mappings(given)
        return Configured([_optimizer(each) for each in given], [])
    raise ConfigError(KEY, given if given is None else type(given).__name__, ACCEPTED)


def _of_mappings(given: Sequence[Mapping[str, Any]]) -> Configured:
    for each in given:
        if "frequency" in each:
            raise ConfigError(
                KEY, "frequency", "no frequency for optimizers: every optimizer is stepped on every batch"
            )
        for name in each:
            if name not in KEYS:
                raise ConfigError(KEY, name, f"a key of a mapping with an optimizer: {', '.join(KEYS)}", options=KEYS)
    schedulers = [
        _scheduled(each["lr_scheduler"], each.get("monitor")) for each in given if each.get("lr_scheduler") is not None
    ]
    return Configured([_optimizer(each.get("optimizer")) for each in given], schedulers)


def _optimizer(given: Any) -> Optimizer:
    if not isinstance(given, Optimizer):
        raise ConfigError(KEY, given if given is None else type(given).__name__, ACCEPTED)
    return given


def _scheduled(given: Any, monitor: str | None = None) -> Scheduled:
    """Return a scheduler; `monitor` is that of the mapping with a scheduler that has no options of its own."""
    options: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"scheduler": given, "monitor": monitor}
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(KEY, name, f"a key of lr_scheduler: {', '.join(OPTIONS)}", options=OPTIONS)
    scheduler = options.get("scheduler")
    if not all(hasattr(scheduler, name) for name in ("step", "state_dict", "load_state_dict")):
        raise ConfigError(KEY, scheduler, "a scheduler with step, state_dict and load_state_dict")
    interval, frequency = options.get("interval", "epoch"), options.get("frequency", 1)
    if interval not in ("epoch", "step"):
        raise ConfigError(KEY, interval, "epoch or step as the `interval` of a scheduler", options=("epoch", "step"))
    if not isinstance(frequency, int) or frequency < 1:
        raise ConfigError(KEY, frequency, "an integer of at least 1 as the `frequency` of a scheduler")
    plateau = isinstance(scheduler, ReduceLROnPlateau) or bool(options.get("reduce_on_plateau"))
    if plateau and options.get("monitor") is None:
        raise ConfigError(
            KEY,
            type(scheduler).__name__,
            "this scheduler in a mapping with a `monitor`, the name of a validation metric: "
            "{'scheduler': …, 'monitor': 'val_loss'}",
        )
    return Scheduled(scheduler, interval, frequency, options.get("monitor") if plateau else None)
