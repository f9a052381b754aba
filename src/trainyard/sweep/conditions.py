"""Conditional keys of a sweep (`hydra.sweeper.when`): a key whose condition does not hold is not a parameter of a
job."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError, first_line
from trainyard.sweep.grid_settings import CONDITION, WHEN

_Condition = tuple[str, tuple[str, ...]]  # a key, and the texts of the values of which it has to have one


class Conditions:
    """Decides which overrides of a job are its parameters.

    A condition `model=mlp,cnn` on a key holds if the job chooses one of these options: by an override, through another
    option (`experiment`), or because it is the default. It may also name a value: `optim.nesterov=true`. A condition on
    a key that is conditional itself holds only if that key is a parameter. Keys below a conditional key are also
    conditional.

    Args:
        when: the conditions for each key, which must all hold.
        loader: Hydra's loader, which gives the options and the composed configs.
        master: the config of the entire sweep.
        fixed: the overrides that all jobs share.
        keys: the keys of all overrides.

    Raises:
        ConfigError: a key or an option is unknown, or conditions depend on one another in a circle.
    """

    def __init__(
        self,
        when: Mapping[str, Sequence[str]],
        loader: ConfigLoader,
        master: DictConfig,
        fixed: Sequence[str] = (),
        keys: Iterable[str] = (),
    ) -> None:
        self._loader = loader
        self._master = master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parse = cache(self._parser.parse_override)
        self._default = cache(self._find_default)
        self._options = cache(lambda group: list(loader.get_group_options(group)))
        self._conditions = {key: [self._condition(key, text) for text in texts] for key, texts in when.items()}
        self._owner = cache(self._find_owner)
        keys = set(keys)
        for key in self._conditions:
            self._check_circle(key, ())
        shared = [line for line in fixed if self._chooses(line) and self._owner(self._key(line)) is None]
        for key in self._conditions:
            self._check(key, shared, keys)

    def kept(self, job: Sequence[str]) -> list[str]:
        """Return the overrides of a job that are parameters of it, in order."""
        known: dict[str, bool] = {}
        return [line for line in job if (own := self._owner(self._key(line))) is None or self._applies(own, job, known)]

    def depth(self, key: str) -> int:
        """Return the number of nested conditions that decide whether a key is a parameter."""
        owner = self._owner(key)
        return 0 if owner is None else 1 + max(self.depth(name) for name, _ in self._conditions[owner])

    def _applies(self, key: str, job: Sequence[str], known: dict[str, bool]) -> bool:
        if key not in known:
            known[key] = all(self._holds(condition, job, known) for condition in self._conditions[key])
        return known[key]

    def _holds(self, condition: _Condition, job: Sequence[str], known: dict[str, bool]) -> bool:
        key, texts = condition
        owner = self._owner(key)
        if owner is not None and not self._applies(owner, job, known):
            return False
        lines = tuple(line for line in job if (own := self._owner(self._key(line))) is None or known.get(own))
        value = self._value(key, lines)
        return any(_equal(value, self._parse(f"{key}={text}").value()) for text in texts)

    def _value(self, key: str, lines: tuple[str, ...]) -> Any:
        """Return the value of a key, or the option of a group, in the job of these overrides."""
        group = self._is_group(key)
        own = [line for line in lines if self._key(line) == key]
        mappings = not group and any("={" in line for line in lines)
        if own and not mappings and not _is_open(value := self._parse(own[-1]).value()):
            return value
        choices = tuple(line for line in lines if self._chooses(line))
        try:
            value, is_certain = self._default(key, choices)
            return value if group or (is_certain and not own and not mappings) else self._default(key, lines)[0]
        except HydraException:
            return None  # the job has an error, which its check reports

    def _find_default(self, key: str, lines: tuple[str, ...]) -> tuple[Any, bool]:
        """Return the value of a key in the config of these overrides, and whether others cannot change it."""
        config = self._config(lines)
        if self._is_group(key):
            return config.hydra.runtime.choices.get(key), True
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent, throw_on_resolution_failure=False) if parent else config
        value = OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=False)
        is_certain = isinstance(node, DictConfig) and not OmegaConf.is_interpolation(node, name)
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, is_certain

    def _config(self, lines: Sequence[str]) -> DictConfig:
        return self._loader.load_sweep_config(self._master, list(lines))

    def _is_group(self, key: str) -> bool:
        return bool(self._options(key.partition("@")[0]))

    def _chooses(self, line: str) -> bool:
        override: Override = self._parse(line)
        return bool(self._options(override.key_or_group)) and not isinstance(override.value(), dict)

    def _key(self, line: str) -> str:
        return line.partition("=")[0].lstrip("+~")

    def _find_owner(self, key: str) -> str | None:
        """Return the conditional key that a key is, or is below; the nearest of several."""
        found = [each for each in self._conditions if is_in(key, each)]
        return max(found, key=len, default=None)

    # -- checks ----------------------------------------------------------------------------------------------------

    def _condition(self, key: str, text: str) -> _Condition:
        """Return a condition in its parts.

        Raises:
            ConfigError: the condition cannot be parsed, or does not name an option of a group.
        """
        place = f"{WHEN}.{key}"
        try:
            override = self._parse(text)
            values = list(override.sweep_string_iterator()) if override.is_sweep_override() else []
        except HydraException as error:
            hint = f"Parsing it failed: {first_line(error).rstrip('.')}."
            raise ConfigError(place, text, CONDITION, hint=hint) from error
        name = str(override.get_key_element()).lstrip("+")
        texts = tuple(map(str, values)) or (override.get_value_element_as_str(),)
        options = self._options(override.key_or_group)
        for each in (self._parse(f"{name}={each}").value() for each in texts if options):
            if each is not None and each not in options:
                raise ConfigError(place, each, f"an option of {name}: {', '.join(options)}", options=options)
        return name, texts

    def _check_circle(self, key: str, before: tuple[str, ...]) -> None:
        if key in before:
            circle = " → ".join([*before[before.index(key) :], key])
            raise ConfigError(WHEN, circle, "conditions without circular dependencies")
        for name, _ in self._conditions[key]:
            owner = self._owner(name)
            if owner is not None:
                self._check_circle(owner, (*before, key))

    def _check(self, key: str, shared: Sequence[str], keys: set[str]) -> None:
        """Check that a conditional key, and the keys of its conditions, exist in the configs where it is a parameter.

        Raises:
            ConfigError: a key does not exist.
        """
        before = [*shared, *self._premises(key)]
        for name, _ in self._conditions[key]:
            if not self._is_group(name) and name not in keys:
                config = self._config(before)
                if not _has(config, name):
                    raise _unknown(f"{WHEN}.{key}", name, [config], [*keys, *_groups(config)])
        if self._is_group(key):
            return
        configs = []
        for chosen in itertools.product(
            *([f"{name}={text}" for text in texts] for name, texts in self._conditions[key])
        ):
            configs.append(self._config([*before, *chosen]))
            if _has(configs[-1], key):
                return
        raise _unknown(WHEN, key, configs, keys)

    def _premises(self, key: str) -> list[str]:
        """Return overrides with which the keys of the conditions of a key are parameters."""
        found: list[str] = []
        for name, _ in self._conditions[key]:
            owner = self._owner(name)
            if owner is not None:
                found += [*self._premises(owner), *(f"{each}={texts[0]}" for each, texts in self._conditions[owner])]
        return found


def _is_open(value: Any) -> bool:
    """Return whether a value depends on the rest of the config."""
    return isinstance(value, dict) or "${" in str(value)


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, list) and not isinstance(wanted, list):  # of a group with several options
        return wanted in value
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_resolution_failure=False) if parent else config
    return isinstance(node, DictConfig) and name in node.keys()  # noqa: SIM118, `in node` follows interpolations


def _groups(config: DictConfig) -> list[str]:
    return [str(group) for group in config.hydra.runtime.choices]


def _unknown(place: str, key: str, configs: Sequence[DictConfig], keys: Iterable[str]) -> ConfigError:
    parent = key.rpartition(".")[0]
    siblings: dict[str, None] = {}
    for config in configs:
        node = OmegaConf.select(config, parent, throw_on_resolution_failure=False) if parent else config
        if isinstance(node, DictConfig):
            siblings |= {f"{parent}.{name!s}" if parent else str(name): None for name in node.keys()}  # noqa: SIM118
    siblings.pop("hydra", None)
    known = list(siblings)
    accepted = f"a key of {parent or 'the config'}: {', '.join(known)}" if known else "a key of the config"
    return ConfigError(place, key, accepted, options=[*known, *sorted({*keys} - {key})])


def is_in(key: str, node: str) -> bool:
    """Return whether a key of the config, or a group of options, is this node or is below it."""
    return key == node or key.startswith((f"{node}.", f"{node}/"))
