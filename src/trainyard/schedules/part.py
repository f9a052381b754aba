"""Scheduler config, with its arguments checked and "auto" and fractions resolved."""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch.optim.lr_scheduler import CyclicLR, ExponentialLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from trainyard.checks import is_number, number
from trainyard.config.annotations import DURATIONS
from trainyard.errors import ConfigError
from trainyard.schedules import floors
from trainyard.schedules.standin import StandIn
from trainyard.schedules.timms import is_timms, timms

log = logging.getLogger(__name__)

OWN_LR = ("max_lr", "base_lr")
"""Arguments of torch's schedulers that are learning rates: "auto" is the learning rate of the group."""

_NOT_NEGATIVE = (*OWN_LR, "eta_min", "base_momentum", "max_momentum", "power")
"""Arguments that torch does not check, and from which negative learning rates or momenta would follow."""

_SPAN = "the length of this scheduler"
_MILESTONES = "a list of integers of at least {} or fractions of {} in (0, 1), each larger than the one before"


@dataclass(frozen=True)
class Part:
    """A scheduler to be built.

    Attributes:
        key: its place in the config, for messages.
        make: the scheduler's class, or a function that takes an optimizer and returns a scheduler.
        keywords: its arguments, with "auto" and fractions as they were given.
        scale: the number of steps in a unit of the config; see `scaled`.
        given: the arguments before they were scaled, for messages.
    """

    key: str
    make: Callable[..., Any]
    keywords: Mapping[str, Any]
    scale: int = 1
    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, given: Any) -> Part:
        """Check everything that does not depend on the run's length, and return the part.

        Raises:
            ConfigError: it is not a scheduler, does not accept an argument, or cannot use a number.
        """
        make, keywords = (given.func, given.keywords) if isinstance(given, functools.partial) else (given, {})
        if isinstance(make, type) and issubclass(make, ReduceLROnPlateau):
            raise ConfigError(key, make.__name__, "a scheduler that needs no metric", hint="Use schedule=plateau.")
        if is_timms(make):
            make = functools.partial(timms, make)
            functools.update_wrapper(make, make.args[0])
        if not callable(make) or (isinstance(make, type) and not issubclass(make, LRScheduler)):
            accepted = "a torch.optim.lr_scheduler class with `_partial_: true`, or null"
            raise ConfigError(key, getattr(make, "__name__", make), accepted)
        part = cls(key, make, keywords)
        part._check()
        return part

    @property
    def name(self) -> str:
        return getattr(self.make, "__name__", type(self.make).__name__)

    @property
    def _torchs(self) -> bool:
        """True if the scheduler is one of torch's, or one with a floor; their arguments are known by name."""
        return getattr(self.make, "__module__", "") in (LRScheduler.__module__, floors.__name__)

    def _check(self) -> None:
        taken = inspect.signature(self.make).parameters
        options = [name for name in taken if name not in ("optimizer", "last_epoch")]
        open_ended = any(argument.kind is argument.VAR_KEYWORD for argument in taken.values())
        for name, value in self.keywords.items():
            if name not in options and not open_ended:
                accepted = f"an argument of {self.name}: {', '.join(options) or 'none'}"
                raise ConfigError(self.key, name, accepted, options=options)
            if self._torchs:
                self._check_value(name, value, taken[name].default)

    def _check_value(self, name: str, value: Any, default: Any) -> None:
        key = f"{self.key}.{name}"
        if name == "milestones":
            check_milestones(key, value, least=1, whole=_SPAN)
        elif name in DURATIONS:
            if not (value == "auto" or (value is None and default is None)):
                own = '"auto" (from the start to the end of this scheduler)'
                check_position(key, value, own, *(["null"] if default is None else []), at_least=1, whole=_SPAN)
        elif value == "auto":
            if name not in (*OWN_LR, "cycle_momentum"):
                raise ConfigError(key, value, "an explicit value, because the run does not define this argument")
        elif name == "gamma":
            number(key, value, above=0)
        elif name in _NOT_NEGATIVE:
            for each in value if isinstance(value, (list, tuple)) else [value]:  # some take one for each group
                number(key, each, at_least=0)
        elif is_number(default) and not isinstance(value, (list, tuple)):
            number(key, value, finite=False)

    def scaled(self, units: int) -> Part:
        """Return the part for `units` steps per unit: a schedule of epochs stepped at iterations.

        Lengths are multiplied. Factors that torch applies at every step become their root, so that the product over a
        complete unit is unchanged. Counts of a user's class or function are not scaled.
        """
        if units == 1 or not self._torchs:
            return self
        taken = inspect.signature(self.make).parameters
        keywords = {name: taken[name].default for name in DURATIONS if name in taken and is_number(taken[name].default)}
        for name, value in {**keywords, **self.keywords}.items():
            if name in DURATIONS and is_count(value, 1):
                value = int(value) * units
            elif name == "milestones":
                value = [position if is_share(position) else int(position) * units for position in value]
            elif name == "gamma" and self.make in (ExponentialLR, CyclicLR):
                value = value ** (1 / units)
            keywords[name] = value
        return replace(self, keywords=keywords, scale=units, given=self.keywords)

    def _in_units(self, steps: float) -> float:
        """Return a number of steps in the unit of the config."""
        units = steps / self.scale
        return int(units) if units == units // 1 else units

    def _as_given(self, name: str, value: Any) -> Any:
        """Return the value of an argument as the user gave it; for "auto" and for defaults, in the unit of the
        config."""
        given = self.given.get(name, "auto")
        if not (isinstance(given, str) and given == "auto"):
            return given
        return self._in_units(value) if name in DURATIONS and value is not None else value

    def last_step(self, length: float) -> float:
        """Return the number of the last meaningful step if a run may be longer than the estimate `length`.

        It is finite for a scheduler whose arguments depend on the length, and for `OneCycleLR`; otherwise, it is
        infinite.
        """
        given = {name: value for name, value in self.keywords.items() if name not in (*OWN_LR, "cycle_momentum")}
        places = given.get("milestones", ()) if self._torchs else ()
        shares = [given[name] for name in DURATIONS if self._torchs and name in given] + list(places)
        if "auto" in [value for value in given.values() if isinstance(value, str)] or any(map(is_share, shares)):
            return length - 1
        if self.make is not OneCycleLR:
            return math.inf
        total: float = given.get("total_steps") or given.get("epochs", 1) * given.get("steps_per_epoch", 1)
        return total - 1

    def _blamed(self, optimizer: StandIn, keywords: Mapping[str, Any]) -> str | None:
        """Return the argument without which torch's scheduler accepts the others; None if there is none."""
        for name in keywords:
            try:
                self.make(optimizer, **{other: value for other, value in keywords.items() if other != name})
            except Exception:  # it is needed, or another one is wrong
                continue
            return name
        return None

    def build(self, optimizer: StandIn, length: float, *, certain: bool = True) -> LRScheduler:
        """Build the scheduler on `optimizer`; `length` is its number of steps, infinite if unknown.

        Raises:
            ConfigError: torch's scheduler rejects its arguments, or would end before a `length` that is `certain`; or
                an argument depends on the length, which is unknown.
        """
        keywords = {name: self._resolve(name, value, optimizer, length) for name, value in self.keywords.items()}
        if certain:
            self._tell_beyond(keywords, length)
        if self.make is OneCycleLR:
            self._check_one_cycle(keywords)
        try:
            scheduler = self.make(optimizer, **keywords)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            if self.make is OneCycleLR and isinstance(error, ZeroDivisionError):  # pct_start * total_steps is 1
                given = _listed({name: self._as_given(name, value) for name, value in keywords.items()})
                raise ConfigError(
                    self.key,
                    self.name,
                    "arguments with at least two steps in each phase",
                    hint=f"With {given}, a phase of the schedule has a single step, which causes a division by zero.",
                ) from error
            said = f"{self.name} says: {str(error).rstrip('.')}."
            blamed = self._blamed(optimizer, keywords)
            if blamed is None:
                raise ConfigError(self.key, self.name, f"arguments that {self.name} accepts", hint=said) from error
            key, accepted = f"{self.key}.{blamed}", f"a value that {self.name} accepts"
            raise ConfigError(key, self._as_given(blamed, keywords[blamed]), accepted, hint=said) from error
        if not isinstance(scheduler, LRScheduler):
            raise ConfigError(self.key, self.name, f"a callable that returns an LRScheduler, not {scheduler!r}")
        if certain and isinstance(scheduler, OneCycleLR) and scheduler.total_steps < length:
            accepted = f'"auto", or at least {self._in_units(length):.12g}, the length of the schedule'
            raise ConfigError(f"{self.key}.total_steps", self._in_units(scheduler.total_steps), accepted)
        return scheduler

    def _check_one_cycle(self, keywords: Mapping[str, Any]) -> None:
        """Check the learning rates of `OneCycleLR`, which torch does not check.

        Raises:
            ConfigError: a learning rate would be negative, or is divided by 0.
        """
        for name in ("div_factor", "final_div_factor"):
            given = keywords.get(name, 1.0)
            for value in (
                given.tolist() if isinstance(given, np.ndarray) else [given]
            ):  # in a stack, an array of members
                number(f"{self.key}.{name}", value, above=0)

    def _tell_beyond(self, keywords: Mapping[str, Any], length: float) -> None:
        """Log the lengths and milestones that the run does not reach."""
        for name, value in keywords.items() if self._torchs else ():
            ends = value if name == "milestones" else [value] if name in DURATIONS and value is not None else []
            for end in ends:
                if end > length:
                    _tell_once(self.name, name, self._in_units(end), self._in_units(length))

    def _resolve(self, name: str, value: Any, optimizer: StandIn, length: float) -> Any:
        if isinstance(value, str) and value == "auto":
            if name in OWN_LR:
                return [group["lr"] for group in optimizer.base]
            if name == "cycle_momentum":
                # Torch cycles one of the two in all groups, and reads in the defaults which one; Muon has both in turn.
                key = "betas" if "betas" in optimizer.defaults else "momentum"
                return key in optimizer.defaults and all(bool(group.get(key)) for group in optimizer.base)
            return known(f"{self.key}.{name}", value, length)
        if self._torchs and name in DURATIONS and value is not None:
            key = f"{self.key}.{name}"
            return max(1, round(value * known(key, value, length))) if is_share(value) else int(value)
        if self._torchs and name == "milestones":
            return [max(1, position) for position in positions(f"{self.key}.{name}", value, length)]
        return value


def is_count(value: Any, least: int) -> bool:
    """Return whether `value` is an integer of at least `least`, or a float equal to one, such as 1e3 from YAML."""
    return is_number(value, at_least=least) and value == value // 1


def is_share(value: Any) -> bool:
    """Return whether `value` is a fraction of the run."""
    return is_number(value, above=0, below=1)


def check_position(key: str, value: Any, *others: str, at_least: int, whole: str = "the run") -> None:
    """Raise a `ConfigError` unless `value` counts in the unit or is a fraction of `whole`.

    `others` describe other values that the caller accepts and has already handled, for the message.
    """
    if not (is_share(value) or is_count(value, at_least)):
        kinds = [f"an integer of at least {at_least}", f"a fraction of {whole} in (0, 1)", *others]
        raise ConfigError(key, value, f"{', '.join(kinds[:-1])}, or {kinds[-1]}")


@functools.cache
def _tell_once(kind: str, name: str, end: float, length: float) -> None:
    place = f"{end:.12g} ({name} of {kind})"
    log.warning(
        "schedule: %s is never reached, because this scheduler's part of the run ends after %.12g.", place, length
    )


def known(key: str, value: Any, length: float) -> int:
    """Return the length of a run, on which `value` depends.

    Raises:
        ConfigError: it is unknown (infinite).
    """
    if math.isinf(length):
        hint = (
            "The training data has no length (no __len__), so the length of the run in the unit of the schedule is "
            "unknown."
        )
        raise ConfigError(key, value, "a number of epochs or iterations", hint=hint)
    return int(length)


def positions(key: str, given: Sequence[float], length: float) -> list[int]:
    """Return milestones as positions in a run of `length`; fractions are rounded to the nearest position before its
    end.

    Raises:
        ConfigError: there is a fraction, and the length is unknown.
    """
    if any(map(is_share, given)):
        whole = known(key, given[0] if len(given) == 1 else list(given), length)
        return [min(round(value * whole), whole - 1) if is_share(value) else int(value) for value in given]
    return [int(value) for value in given]


def check_milestones(key: str, given: Any, *, least: int, length: float | None = None, whole: str = "the run") -> None:
    """Raise a `ConfigError` unless `given` are milestones in increasing order.

    Integers and fractions of `whole` can be compared only when its `length` is known.
    """
    accepted = _MILESTONES.format(least, whole)
    if not isinstance(given, (list, tuple)) or not all(is_share(value) or is_count(value, least) for value in given):
        raise ConfigError(key, given, accepted)
    for one, other in pairwise(given):
        comparable = is_share(one) == is_share(other)
        if length is not None and not comparable:
            one, other = (value * length if is_share(value) else value for value in (one, other))
            comparable = True
        if comparable and not one < other:
            raise ConfigError(key, given, accepted)


def _listed(keywords: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in keywords.items())
