"""Check of the values of a config against the annotations of the target's arguments.

Only values that a config can contain are checked: booleans, numbers, strings, null, lists and mappings. Other types in
an annotation, and annotations that do not resolve, are skipped.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from trainyard.errors import ConfigError, counted

UNKNOWN = object()
"""Annotation of an argument that has none, or one that does not resolve."""

DURATIONS = ("T_max", "T_0", "total_iters", "total_steps", "step_size", "step_size_up", "step_size_down")
"""Arguments of torch's schedulers that count in the unit of the schedule: an integer, a fraction of the run in (0, 1),
or "auto"."""
_SCHEDULERS = ("torch.optim.lr_scheduler", "trainyard.schedules.floors")
"""Modules of the schedulers that have these arguments, or `milestones`, a list of integers or fractions."""

LISTS = (list, tuple, Sequence, MutableSequence, Collection, Iterable)
MAPPINGS = (dict, Mapping, MutableMapping)
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}
_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_TRUTH = dict.fromkeys(("no", "off", "n", "false"), "false") | dict.fromkeys(("yes", "on", "y", "true"), "true")


def check_arguments(
    target: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    values: Mapping[str, Any],
    key: str,
    *,
    shares: bool = False,
) -> None:
    """Check the values of a target's arguments.

    An int is accepted as a float; a bool is not an int. If an argument has no annotation but a default that is a bool,
    a string that spells a truth value (`no`, `off`) is rejected, because it would count as true.

    Args:
        target: the class or function.
        parameters: its parameters.
        values: the arguments by name, in plain Python; arguments without a parameter are skipped.
        key: the place of the node in the config.
        shares: also accept fractions of the run for the lengths of torch's schedulers.

    Raises:
        ConfigError: a value does not fit.
    """
    for name, value in values.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        hint = annotation(target, name)
        if value is None and parameter.default is None:
            continue
        if hint is UNKNOWN:
            if isinstance(parameter.default, bool) and isinstance(value, str) and value.lower() in _TRUTH:
                raise _refusal(f"{key}.{name}", value, bool)
            continue
        length = shares and may_be_share(target, name)
        if not fits(_counted(value) if length else value, hint):
            refusal = _refusal(f"{key}.{name}", value, hint)
            raise _of_length(refusal) if length else refusal


def check_value(key: str, value: Any, hint: Any) -> None:
    """Check one value.

    Raises:
        ConfigError: the value does not fit.
    """
    if not fits(value, hint):
        raise _refusal(key, value, hint)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value fits an annotation, or the annotation says nothing about values of a config.

    A list is accepted as a tuple. A string is not accepted as a list of strings, although Python could iterate over it.
    The target itself checks a mapping of mappings, because it knows the keys.
    """
    if not _is_plain(value):
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    if is_tensor(hint):
        return False
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    kind = origin or hint
    if kind in LISTS:
        return _fits_list(value, kind, arguments)
    if kind in MAPPINGS:
        entry = arguments[-1] if arguments else Any
        nested = (get_origin(entry) or entry) in MAPPINGS
        return isinstance(value, Mapping) and (nested or all(fits(each, entry) for each in value.values()))
    return True


@functools.lru_cache(maxsize=4096)
def annotation(target: Callable[..., Any], name: str) -> Any:
    """Return the resolved annotation of an argument; `UNKNOWN` if there is none, or if it does not resolve."""
    found = inspect.signature(target).parameters[name].annotation
    if found is inspect.Parameter.empty:
        return UNKNOWN
    function: Any = target
    if isinstance(target, type):
        made = [getattr(target, name) for name in ("__init__", "__new__")]
        function = made[0] if made[0] is not object.__init__ else made[1]
    elif isinstance(target, functools.partial):
        function = target.func
    elif not hasattr(target, "__globals__"):
        function = type(target).__call__
    holder = types.SimpleNamespace(__annotations__={name: found})
    try:
        return typing.get_type_hints(holder, getattr(inspect.unwrap(function), "__globals__", {}), {})[name]
    except Exception:  # a name that is imported for type checkers only, or code that fails
        return UNKNOWN


def may_be_share(target: Callable[..., Any], name: str) -> bool:
    """Return whether an argument of a scheduler counts in the unit of the schedule, so that it may be a fraction of the
    run."""
    return name in (*DURATIONS, "milestones") and getattr(target, "__module__", "") in _SCHEDULERS


def in_words(hint: Any) -> str:
    """Describe the values of a config that fit an annotation: `an integer, or null`."""
    every = options_of(hint)
    options = [option for option in every if not is_tensor(option)]
    options.sort(key=lambda option: option is type(None))
    names = [str(_yaml(option)) for each in options if get_origin(each) is Literal for option in get_args(each)]
    words = [_word(option) for option in options if get_origin(option) is not Literal]
    if names:
        words.insert(0, f"one of {', '.join(names)}" if len(names) > 1 else names[0])
    if len(options) < len(every) and not set(options) - {type(None)}:
        words.insert(0, "a tensor, built by a config with `_target_`")
    return ", or ".join(dict.fromkeys(words))


def _refusal(key: str, value: Any, hint: Any) -> ConfigError:
    names = [option for each in options_of(hint) if get_origin(each) is Literal for option in get_args(each)]
    spelled = _TRUTH.get(value.lower()) if isinstance(value, str) and bool in options_of(hint) else None
    guess = f"Did you mean {spelled}? A string is not a boolean." if spelled else ""
    return ConfigError(key, value, in_words(hint), hint=guess, options=[str(name) for name in names])


def _of_length(refusal: ConfigError) -> ConfigError:
    """Return the same error for a length of a scheduler, whose integers may also be fractions of the run."""
    words = {
        "an integer": 'an integer, a fraction of the run in (0, 1), or "auto"',
        "a list of integers": "a list of integers or fractions of the run in (0, 1)",
    }
    first, rest, last = refusal.accepted.partition(", or null")
    return ConfigError(refusal.key, refusal.given, f"{words.get(first, first)}{rest}{last}", hint=refusal.hint)


def _fits_list(value: Any, kind: Any, arguments: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return kind in (Collection, Iterable) and isinstance(value, Mapping)
    if kind is not tuple or (len(arguments) == 2 and arguments[1] is ...):
        return not arguments or all(fits(entry, arguments[0]) for entry in value)
    return not arguments or (len(value) == len(arguments) and all(map(fits, value, arguments)))


def _counted(value: Any) -> Any:
    """Return the value with an int for each float."""
    if isinstance(value, list | tuple):
        return [_counted(entry) for entry in value]
    return 1 if isinstance(value, float) else value


def _is_plain(value: Any) -> bool:
    """Return whether this is a plain value of a config, not an object that the config describes."""
    if isinstance(value, Mapping):
        return "_target_" not in value
    return value is None or isinstance(value, bool | int | float | str | list | tuple)


def is_tensor(hint: Any) -> bool:
    return getattr(hint, "__module__", "") == "torch" and getattr(hint, "__qualname__", "") == "Tensor"


def options_of(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(option for each in get_args(hint) for option in options_of(each))
    return (type(None) if hint is None else hint,)


def _word(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in MAPPINGS:
        values = _plurals(arguments[-1]) if arguments else ""
        return f"a mapping whose values are {values}" if values else "a mapping"
    if kind is Callable:
        return "a function"
    if kind not in LISTS:
        return f"an object of class {kind.__name__}" if isinstance(kind, type) else f"a value of type {hint}"
    if kind is tuple and arguments and arguments[-1] is not ...:
        count, entries = len(arguments), set(arguments)
    else:
        count, entries = 0, set(arguments[:1])
    if not entries:
        return "a list"
    entry = next(iter(entries)) if len(entries) == 1 else None
    plain = [option for option in options_of(entry) if not is_tensor(option)]
    name = _NAMES.get(plain[0], "value") if len(plain) == 1 else "value" if plain else "tensor"
    return f"a list of {counted(count, name)}" if count else f"a list of {name}s"


def _plurals(hint: Any) -> str:
    """Describe several values that fit an annotation: `strings or lists`; empty if there are no words for it."""
    words = []
    for option in options_of(hint):
        kind = get_origin(option) or option
        if option in _NAMES:
            words.append(f"{_NAMES[option]}s")
        elif kind in LISTS or kind in MAPPINGS:
            entries = get_args(option)[:1] if kind in LISTS else ()
            plain = _NAMES.get(entries[0], "") if entries else ""
            words.append(("lists" if kind in LISTS else "mappings") + (f" of {plain}s" if plain else ""))
        else:
            return ""
    return " or ".join(dict.fromkeys(words))


def _yaml(value: Any) -> Any:
    return {True: "true", False: "false", None: "null"}.get(value, value) if isinstance(value, bool | None) else value
