"""Kinds of jobs: jobs of the same kind can train as one stack.

Jobs are of one kind if their resolved configs are equal, key for key, except for numbers at the keys that their
application allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from trainyard.errors import some

SHOWN = 3  # maximum number of keys in a reason
_LONG = 40  # maximum number of characters of a value in a reason
ANYWHERE = "**"
"""Part of a key that matches any keys, or none."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """Configs that can train as one program.

    Attributes:
        key: equal for equal kinds.
        fixed: the values that are equal in all of them, with a mark in place of each number that may differ.
        members: their indices, in order.
    """

    key: str
    fixed: Values
    members: list[int]


class _Number:
    def __repr__(self) -> str:
        return "<number>"


_NUMBER = _Number()


def kinds(
    configs: Sequence[Values],
    allowed: Sequence[str],
    elsewhere: Sequence[str],
    fixed_with: Mapping[str, str] = MappingProxyType({}),
) -> list[Kind]:
    """Return the configs by kind, in order of first appearance.

    Args:
        configs: plain Python, resolved.
        allowed: the places (`optim`, `hook.ema.decay`) at or below which numbers may differ: also an int and a float,
            and lists of equal length item by item; but not bool, None or strings. `model.**.dropout` is a key at any
            depth below `model`, at which numbers above 0 may differ: with 0 there may be no such module.
        elsewhere: the places that are not compared at all.
        fixed_with: for some of `allowed`, another key: in a config with a value at this key, numbers may not differ.
    """
    rules_with: dict[tuple[str, ...], dict[str, Any]] = {}
    known: dict[tuple[str, int, tuple[str, ...]], str] = {}  # jobs share most parts of their configs
    found: dict[str, Kind] = {}
    for index, config in enumerate(configs):
        fixed = tuple(place for place, other in fixed_with.items() if _at(config, other))
        if fixed not in rules_with:
            free = [place for place in allowed if place not in fixed]
            rules_with[fixed] = _rules(free, free=True) | _rules(elsewhere, free=False)
        rules = rules_with[fixed]
        # repr distinguishes plain values such as 1, 1.0, "1" and True, and treats NaN as equal to NaN. The order of
        # keys counts: hooks, and other parts built from a mapping, come in that order.
        texts = []
        for name, value in config.items():
            part = name, id(value), fixed
            if part not in known:
                known[part] = repr(_masked({name: value}, rules))[1:-1]
            texts.append(known[part])
        key = f"{{{', '.join(filter(None, texts))}}}"
        if key not in found:
            found[key] = Kind(key, _masked(config, rules), [])
        found[key].members.append(index)
    return list(found.values())


def reasons(kinds: Sequence[Kind], nums: Sequence[int], choices: Sequence[Mapping[str, str]]) -> dict[int, str]:
    """Return, for each config that is the only one of its kind, how it differs from the nearest of another kind.

    Args:
        kinds: all kinds.
        nums: the number of each config's job.
        choices: the overrides of each config's job; those that explain a difference are named.

    Returns:
        By the config's index: `the only job with loop.max_epochs=30`, or `differs from #3 in model` if no value is
        unique but the combination is.
    """
    if len(kinds) < 2:
        return {}
    from numpy import array  # imported here only, because it loads slowly

    leaves = [dict(_leaves(kind.fixed)) for kind in kinds]
    columns = {
        path: [each.get(path) for each in leaves] for path in dict.fromkeys(path for each in leaves for path in each)
    }
    columns = {path: column for path, column in columns.items() if len(set(column)) > 1}
    counts = {path: Counter(column) for path, column in columns.items()}
    codes = array([_codes(column) for column in columns.values()]).reshape(len(columns), len(kinds))
    found = {}
    for number, kind in enumerate(kinds):
        if len(kind.members) > 1:
            continue
        distance = (codes != codes[:, number, None]).sum(axis=0)
        distance[number] = len(columns) + 1
        other = int(distance.argmin())
        differing = {
            path: column[number] for path, column in columns.items() if column[number] != column[other]
        }  # fmt: skip
        own = [path for path in differing if counts[path][differing[path]] == 1]
        (index,), near = kind.members, kinds[other].members[0]
        found[index] = _told(differing, own, choices[index], choices[near], nums[near])
    return found


def difference(kind: Kind, other: Kind) -> str:
    """Return the places in which two kinds differ, in words."""
    leaves, others = dict(_leaves(kind.fixed)), dict(_leaves(other.fixed))
    places = [place for place in {**leaves, **others} if leaves.get(place) != others.get(place)]
    return some(places, SHOWN) or "the order of their keys"


def _told(
    differing: Mapping[str, str | None],
    own: Sequence[str],
    mine: Mapping[str, str],
    theirs: Mapping[str, str],
    near: int,
) -> str:
    """Return a reason in words.

    Args:
        differing: the value at each place where it differs from the nearest.
        own: the places whose value no other kind has.
        mine, theirs: the overrides of the two.
        near: the number of the nearest.
    """
    chosen = {key: value for key, value in mine.items() if theirs.get(key) != value}
    covered = {key: [path for path in differing if _meet(key, path)] for key in chosen}
    named = {key: chosen[key] for key, paths in covered.items() if paths}
    unique = {key: value for key, value in named.items() if any(path in own for path in covered[key])}
    if not named:
        named = {path: "absent" if value is None else value for path, value in differing.items()}
        unique = {path: named[path] for path in own}
    if unique:
        return f"the only job with {some((f'{key}={_short(value)}' for key, value in unique.items()), SHOWN)}"
    return f"differs from #{near} in {some(named, SHOWN) or 'the order of its keys'}"


def _short(value: str) -> str:
    return value if len(value) <= _LONG else f"{value[: _LONG - 1]}…"


def _meet(key: str, path: str) -> bool:
    """Return whether an override of `key` may change the value at `path`."""
    return f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.") or path.startswith(f"{key}[")


def _codes(column: Sequence[str | None]) -> list[int]:
    codes: dict[str | None, int] = {}
    return [codes.setdefault(value, len(codes)) for value in column]


def _at(config: Values, place: str) -> Any:
    """Return the value of a config at a key; None if there is none."""
    value: Any = config
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _rules(places: Sequence[str], *, free: bool) -> dict[str, Any]:
    """Convert places to a tree: `("a", "b.c")` to `{"a": free, "b": {"c": free}}`."""
    rules: dict[str, Any] = {}
    for place in places:
        *parents, last = place.split(".")
        node = rules
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = free
    return rules


def _masked(config: Values, rules: Values) -> dict[str, Any]:
    masked = {}
    anywhere = rules.get(ANYWHERE, {})
    for key, value in config.items():
        rule = rules.get(key)
        if key in anywhere and _is_number(value):
            masked[key] = _NUMBER if value > 0 else value
        elif rule is None and anywhere and isinstance(value, Mapping):
            masked[key] = _masked(value, {ANYWHERE: anywhere})
        elif rule is None:
            masked[key] = value
        elif rule is True:
            masked[key] = _without_numbers(value)
        elif rule is not False:
            masked[key] = _masked(value, rule) if isinstance(value, Mapping) else value
    return masked


def _without_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_numbers(entry) for entry in value)
    return _NUMBER if _is_number(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each place with its value as text; a list of plain values is not divided."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping | list | tuple) for entry in value):
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{path}[{index}]")
    else:
        yield path, str(value) if isinstance(value, str) and value else repr(value)
