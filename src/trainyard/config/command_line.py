"""Command line: arranges the arguments in the order and form that Hydra expects."""

from __future__ import annotations

from argparse import Action
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trainyard.application import CONFIG_PATH, MULTIRUN
from trainyard.errors import TrainyardError, quoted

SHOWS = ("--cfg", "-c")


def arranged(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line for Hydra.

    Flags can be between overrides, but Hydra needs them first. An abbreviated flag (`--multi`) is replaced with the
    complete flag. In a sweep over the options of a group, an override of a key in this group applies only to the jobs:
    `optim=sgd,rmsprop optim.momentum=0.9` does not override the default option. A relative --config-path starts at the
    current folder, like a relative --config-dir. (Hydra would search it inside this package.)

    Args:
        arguments: without the name of the program.

    Raises:
        TrainyardError: flags that exclude each other, or an override without a key.
    """
    flags, overrides = _split(arguments)
    for line in overrides:
        if line.lstrip("+~")[:1] in ("=", "@", ""):
            raise TrainyardError(f"{quoted(line)} is not a valid override: it has no key. Expected KEY=VALUE.")
    if any(flag in MULTIRUN for flag in flags):
        shown = next((flag for flag in flags if flag.partition("=")[0] in SHOWS), None)
        if shown is not None:
            raise TrainyardError(
                f"{shown} shows the config of one run: omit -m and give one value per key. "
                "hydra.launcher.dry_run=true shows the jobs of a sweep."
            )
        overrides = _of_each_job(overrides)
    return [*flags, *overrides]


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags, with their values, and the overrides."""
    actions = {flag: action for action in get_args_parser()._actions for flag in action.option_strings}
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(reversed(arguments))
    while rest:
        argument = rest.pop()
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        given, equals, value = argument.partition("=")
        name = _unabbreviated(given, actions)
        flags.append(f"{name}{equals}{_absolute(value) if equals and name in CONFIG_PATH else value}")
        action = None if equals else actions.get(name)
        if action is not None and rest and _takes(action, rest[-1]):
            value = rest.pop()
            flags.append(_absolute(value) if name in CONFIG_PATH else value)
    return flags, overrides


def _unabbreviated(flag: str, flags: Collection[str]) -> str:
    """Return the flag that an unambiguous prefix (`--multi`) stands for, as argparse does; or `flag` unchanged."""
    found = [other for other in flags if other.startswith(flag)]
    return found[0] if flag.startswith("--") and flag not in flags and len(found) == 1 else flag


def _absolute(path: str) -> str:
    """Return the absolute path of a folder; the name of a package (`pkg://…`) is not changed."""
    return path if "://" in path else str(Path(path).resolve())


def _takes(action: Action, value: str) -> bool:
    """Return whether the value of a flag follows the flag: always, or if it is one of the choices of the flag."""
    if action.nargs == "?":
        return value in (action.choices or ())
    return action.nargs is None


def _of_each_job(overrides: list[str]) -> list[str]:
    """Return the overrides; those below a swept group become sweeps of one value, which apply only to the jobs."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return overrides  # Hydra reports it
    swept = {override.key_or_group.replace("/", ".") for override in parsed if override.is_sweep_override()}
    found = []
    for override, line in zip(parsed, overrides, strict=True):
        key, _, value = line.partition("=")
        parents = override.key_or_group.split(".")
        below = any(".".join(parents[:depth]) in swept for depth in range(1, len(parents)))
        one = below and value and not override.is_sweep_override() and not override.is_delete()
        found.append(f"{key}=choice({value})" if one else line)
    return found
