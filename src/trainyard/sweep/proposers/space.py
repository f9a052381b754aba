"""Space of a search, in Hydra's grammar of overrides: `interval`, `range`, `choice`, `glob`, and the tag `log`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from trainyard.errors import ConfigError
from trainyard.redaction import check_overrides
from trainyard.sweep.conditions import Conditions
from trainyard.sweep.grid import RANGE, RANGE_HINT, effective, key_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

Ask = Callable[[str, "BaseDistribution"], Any]
"""Returns a value for a name, from a distribution."""


@dataclass(frozen=True)
class Parameter:
    """A key that is searched.

    Attributes:
        key: the key as in an override, with the sign that adds it.
        distribution: the Optuna distribution. The choices of a categorical distribution are texts of overrides.
    """

    key: str
    distribution: BaseDistribution

    @property
    def name(self) -> str:
        """The key without the sign that adds it."""
        return self.key.lstrip("+")

    @property
    def accepted(self) -> str:
        """The values that it can have, for messages."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        own: Any = self.distribution
        if isinstance(own, CategoricalDistribution):
            return f"one of {', '.join(map(str, own.choices))}"
        kind = "an integer" if isinstance(own, IntDistribution) else "a number"
        steps = "" if own.step is None or (kind == "an integer" and own.step == 1) else f" in steps of {own.step!r}"
        return f"{kind} from {own.low!r} to {own.high!r}{steps}"

    def line(self, value: Any) -> str:
        """Return the override that gives it a value."""
        return f"{self.key}={value}" if isinstance(value, str) else f"{self.key}={value!r}"

    def value(self, text: str) -> Any:
        """Return the value that an override of `line` has."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.distribution, FloatDistribution):
            return float(text)
        return int(text) if isinstance(self.distribution, IntDistribution) else text


class Space:
    """Overrides of a search: those that all trials share, and the parameters.

    Attributes:
        parameters: the parameters, by name.
        order: their names, each after those that its conditions name.
        texts: the overrides with a range, as they were given.

    Args:
        lines: the overrides of the config (`hydra.sweeper.params`) and of the command line, in order.
        when: for each key, the conditions under which the key is a parameter (`trainyard.sweep.conditions.Conditions`).
        loader: Hydra's loader.
        master: the config of the entire sweep.
        option: the option of `hydra/sweeper`, for messages.

    Raises:
        ConfigError: no key varies, or a range is empty.
        HydraException: an override cannot be parsed.
    """

    def __init__(
        self,
        lines: Sequence[str],
        when: Mapping[str, Sequence[str]],
        loader: ConfigLoader,
        master: DictConfig,
        option: str = "search",
    ) -> None:
        check_overrides(list(lines))
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(lines))
        kept = effective(parsed, lambda key: bool(loader.get_group_options(key)))
        self._lines: list[str | Parameter] = [_read(override) for override in kept]
        self.parameters = {each.name: each for each in self._lines if isinstance(each, Parameter)}
        if not self.parameters:
            raise ConfigError(
                "hydra/sweeper",
                option,
                "overrides with a range, such as 'optim.lr=tag(log,interval(1e-5,1e-1))', or with several values, such "
                "as model=mlp,cnn, on the command line or in hydra.sweeper.params",
                hint="No override has a range or several values.",
            )
        fixed = [each for each in self._lines if isinstance(each, str)]
        self._conditions = (
            Conditions(when, loader, master, fixed, [key_of(override) for override in kept]) if when else None
        )
        depth = {name: self._conditions.depth(name) if self._conditions else 0 for name in self.parameters}
        self.order = sorted(self.parameters, key=depth.__getitem__)
        self.texts = [str(each.input_line) for each in kept if each.is_sweep_override()]

    @property
    def fixed(self) -> dict[str, str]:
        """The values, as texts, of the keys that all trials share."""
        lines = [each.partition("=") for each in self._lines if isinstance(each, str)]
        return {key.lstrip("+"): text for key, _, text in lines}

    def ask(self, ask: Ask) -> tuple[str, ...]:
        """Return the overrides of a trial, requesting the value of each of its parameters.

        A parameter whose condition names another one is requested after it.
        """
        values: dict[str, Any] = {}
        for name in self.order:
            if self.applies(name, values):
                values[name] = ask(name, self.parameters[name].distribution)
        return tuple(self._overrides(values))

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the values of parameters in overrides, by name, bit-identical to those of `ask`."""
        found: dict[str, Any] = {}
        for line in overrides:
            key, _, text = line.partition("=")
            parameter = self.parameters.get(key.lstrip("+"))
            if parameter is not None:
                found[parameter.name] = parameter.value(text)
        return found

    def distributions(self, names: Sequence[str]) -> dict[str, BaseDistribution]:
        """Return the distributions of parameters."""
        return {name: self.parameters[name].distribution for name in names}

    def applies(self, name: str, values: Mapping[str, Any]) -> bool:
        """Return whether a parameter belongs to a trial with these values of the parameters before it in `order`."""
        if self._conditions is None or not self._conditions.depth(name):
            return True
        parameter = self.parameters[name]
        line = parameter.line(_any(parameter.distribution))
        return line in self._conditions.kept([*self._overrides(values), line])

    def _overrides(self, values: Mapping[str, Any]) -> list[str]:
        return [
            each if isinstance(each, str) else each.line(values[each.name])
            for each in self._lines
            if isinstance(each, str) or each.name in values
        ]


def suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    """Request a value from an Optuna trial."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match distribution:
        case FloatDistribution():
            return trial.suggest_float(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case IntDistribution():
            return trial.suggest_int(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case CategoricalDistribution():
            return trial.suggest_categorical(name, distribution.choices)
    raise TypeError(type(distribution).__name__)


def _any(distribution: BaseDistribution) -> Any:
    """Return some value of a distribution."""
    choices: Any = getattr(distribution, "choices", None)
    return getattr(distribution, "low", None) if choices is None else choices[0]


def _read(override: Override) -> str | Parameter:
    """Return an override unchanged, or the parameter whose values it lists.

    Raises:
        ConfigError: a range is empty or infinite, or log needs positive bounds.
    """
    from optuna.distributions import CategoricalDistribution

    key = str(override.get_key_element())
    texts, value = _texts(override), cast("Any", override.value())
    if texts is None:
        return Parameter(key, _numbers(key, value, str(override.input_line).partition("=")[2]))
    return f"{key}={texts[0]}" if len(texts) == 1 else Parameter(key, CategoricalDistribution(texts))


def fixed_line(override: Override) -> str | None:
    """Return the line of an override with a single value, which all trials share; None if it has several."""
    texts = _texts(override)
    return f"{override.get_key_element()}={texts[0]}" if texts is not None and len(texts) == 1 else None


def _texts(override: Override) -> list[str] | None:
    """Return the texts of the different values of an override; None if it is a range of numbers."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if isinstance(override.value(), IntervalSweep | RangeSweep):
        return None
    return list(dict.fromkeys(map(str, override.sweep_string_iterator())))


def _numbers(key: str, value: IntervalSweep | RangeSweep, given: str) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    is_log = "log" in value.tags
    kind: Any = IntDistribution
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        low, high, step = value.start, value.end, None
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ConfigError(key, given, "an interval of two finite numbers, the first not above the second")
    else:
        numbers = _ends(value)
        if numbers is None:
            raise ConfigError(key, given, RANGE, hint=RANGE_HINT)
        low, high = sorted(numbers)
        step = None if is_log else abs(value.step)
    if isinstance(low, float) or isinstance(high, float):
        kind, low, high = FloatDistribution, float(low), float(high)
    if is_log and low <= 0:
        raise ConfigError(key, given, "numbers above 0, for the tag log")
    if kind is IntDistribution:
        return IntDistribution(int(low), int(high), log=is_log, step=1 if step is None else int(step))
    return FloatDistribution(low, high, log=is_log, step=None if step is None else float(step))


def _ends(value: RangeSweep) -> tuple[float, float] | None:
    """Return the first and the last number of a range; None if it contains no number or is infinite.

    Fractions are decimal: with binary ones, range(0,1,0.3) would end at 0.8999999999999999 and Optuna would omit 0.9.
    """
    given = (value.start, value.stop, value.step)
    if not all(math.isfinite(each) for each in given):  # type: ignore[arg-type]
        return None
    start, stop, step = (Decimal(str(each)) for each in given)
    count = math.ceil((stop - start) / step) if step else 0
    if count < 1:
        return None
    last = start + (count - 1) * step
    is_whole = all(isinstance(each, int) for each in given)
    return (int(start), int(last)) if is_whole else (float(start), float(last))
