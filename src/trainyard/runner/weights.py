"""Weights from files: selection, renaming, and a report of what was loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from trainyard.checks import boolean
from trainyard.distributed.shares import class_of, like
from trainyard.errors import ConfigError, counted, nearest, quoted, some
from trainyard.models.patterns import above_all, fits_within, pattern_list
from trainyard.runner import checkpoint, foreign_files

KEY = "load_from"
SHOWN = 3  # names in a message

Weights = Mapping[str, Any]


@dataclass(frozen=True)
class LoadFrom:
    """Arguments of the setting `load_from`.

    Args:
        path: a checkpoint of Trainyard; or a file that `torch.save` wrote, with tensors by name, or with a dict that
            contains them under `model`, `state_dict` or `model_state_dict`.
        strict: whether the file must contain every tensor of the model, with its shape, and no others. False: matching
            tensors are loaded, and the log lists the others.
        revise_keys: changes of names in the file before they are compared: a mapping from prefixes to replacements (the
            first match is replaced), or a list of pairs `[pattern, replacement]` for `re.sub`, applied in order.
        include: patterns; only matching tensors of the model are loaded, and `strict` applies only to these.
        exclude: patterns; matching tensors of the model are not loaded, and `strict` does not apply to them.

    A pattern of `include` or `exclude` is a glob for the full name of a tensor, or of a module that contains it.
    """

    path: str | Path
    strict: bool = True
    revise_keys: Mapping[str, str] | Sequence[Sequence[str]] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise ConfigError("path", self.path, "the path of a checkpoint or weights file")
        boolean("strict", self.strict)
        for key in ("include", "exclude"):  # null: none
            object.__setattr__(self, key, pattern_list(key, getattr(self, key)))
        _checked_keys(self.revise_keys)


def load_from(given: Any) -> LoadFrom | None:
    """Parse the setting `load_from`: None, a path, or a mapping of the arguments of `LoadFrom`.

    Raises:
        ConfigError: the value is something else, or an argument is unknown or invalid.
    """
    given = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    if given is None or isinstance(given, LoadFrom):
        return given
    if not isinstance(given, Mapping):
        if not isinstance(given, str | os.PathLike):
            raise ConfigError(KEY, given, "the path of a checkpoint or weights file, a mapping with `path`, or null")
        return LoadFrom(given) if str(given) else None  # type: ignore[arg-type]
    arguments = {str(name): value for name, value in given.items() if value is not None}
    names = list(LoadFrom.__dataclass_fields__)
    for name in arguments:
        if name not in names:
            raise ConfigError(KEY, name, f"one of the keys {', '.join(names)}", options=names)
    if "path" not in arguments:
        raise ConfigError(f"{KEY}.path", None, "the path of a checkpoint or weights file")
    try:
        return LoadFrom(**arguments)
    except ConfigError as error:
        raise error.under(KEY) from None


def read(path: Path) -> dict[str, Any]:
    """Return the weights in a file, by name; for a checkpoint of Trainyard those that were evaluated.

    Raises:
        FileNotFoundError: there is no such file.
        checkpoint.DamagedCheckpointError: the file is truncated or modified, or contains no weights.
    """
    state = foreign_files.read(path)
    found = [state[part] for part in checkpoint.WEIGHTS if part in state] if isinstance(state, dict) else []
    for weights in (*found, state):
        if isinstance(weights, Mapping) and any(isinstance(value, Tensor) for value in weights.values()):
            return {str(name): value for name, value in weights.items()}
    more = ", …" if isinstance(state, dict) and len(state) > 8 else ""
    inside = (
        f" (its entries: {', '.join(map(str, list(state)[:8]))}{more})" if isinstance(state, dict) and state else ""
    )
    raise checkpoint.DamagedCheckpointError(
        f"{path} contains no named tensors{inside}. Expected named tensors in the file itself or in one of "
        f"the entries {', '.join(checkpoint.WEIGHTS[1:-1])} or {checkpoint.WEIGHTS[-1]}"
    )


def load(model: nn.Module, weights: Weights, asked: LoadFrom, key: str = KEY) -> str:
    """Load weights into a model.

    Args:
        model: changed in place.
        weights: tensors by their names in the file.
        asked: the tensors to load, and their names.
        key: the setting, for messages.

    Returns:
        A summary for the log: the tensors that were loaded, and those that were not.

    Raises:
        ConfigError: with `asked.strict`, names are missing, unknown or of another shape; a pattern matches nothing; or
            nothing at all matches the model.
    """
    own = model.state_dict()
    weights = _renamed(weights, asked.revise_keys, f"{key}.revise_keys")
    before = "" if asked.revise_keys else _within(weights, own)
    weights = {before + name: value for name, value in weights.items()} if before else weights
    chosen = _filter(asked, {*own, *weights}, key)
    wanted = [name for name in own if chosen(name)]
    missing = [name for name in wanted if name not in weights]
    foreign = [name for name in weights if name not in own and chosen(name)]
    shapes = {
        name: f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in wanted
        if name in weights and getattr(weights[name], "shape", None) != getattr(own[name], "shape", None)
    }
    taken = {name: weights[name] for name in wanted if name in weights and name not in shapes}
    if asked.exclude and not (wanted or foreign):
        accepted = "patterns that leave at least one tensor of the model to load"
        raise ConfigError(f"{key}.exclude", list(asked.exclude), accepted)
    if not taken or (asked.strict and (missing or foreign or shapes)):
        differ = [f"{name} is missing" for name in missing]
        differ += [f"{name} is not in the model" for name in foreign]
        differ += [f"{name.replace(' ', ' has shape ', 1)}" for name in shapes.values()]
        accepted = f"a checkpoint of this model ({class_of(model).__name__})"
        advice = _advice(missing, foreign, before, revisable=key == KEY and not asked.revise_keys)
        if not advice and taken and key == KEY:
            what = "the matching tensor is" if len(taken) == 1 else f"the {len(taken)} matching tensors are"
            advice = f" With load_from: {{path: …, strict: false}}, only {what} loaded."
        rest = len(differ) - SHOWN
        more = f", and {counted(rest, 'more difference')}" if rest > 0 else ""
        hint = f"This checkpoint differs from the model: {', '.join(differ[:SHOWN])}{more}.{advice}"
        raise ConfigError(key, str(asked.path), accepted, hint=hint)
    model.load_state_dict({name: like(value, own[name]) for name, value in taken.items()}, strict=False)
    told = [f"{len(taken)} of {len(own)} tensors loaded"]
    told += [f"with the prefix {quoted(before)}"] if before else []
    told += [f"not requested: {len(own) - len(wanted)}"] if len(wanted) < len(own) else []
    told += [f"missing: {some(missing, SHOWN)}"] if missing else []
    told += [f"not in this model: {some(foreign, SHOWN)}"] if foreign else []
    told += [f"different shapes: {some(shapes.values(), SHOWN)}"] if shapes else []
    return "; ".join(told)


def _checked_keys(given: Any) -> list[tuple[str, str]]:
    """Return the pairs of `revise_keys`; for a mapping, pairs of prefixes."""
    accepted = (
        "a mapping from name prefixes to replacements, or a list of pairs [pattern, replacement], all of them strings"
    )
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise ConfigError("revise_keys", given, accepted)
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or [type(each) for each in pair] != [str, str]:
            raise ConfigError("revise_keys", given, accepted)
        if isinstance(given, Mapping):
            continue
        pattern, replacement = pair
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ConfigError("revise_keys", pattern, "a regular expression", hint=f"Python says: {error}.") from None
        try:
            compiled.sub(replacement, "")
        except (re.error, IndexError) as error:  # the latter for a name that is no group
            raise ConfigError(
                "revise_keys",
                replacement,
                f"a replacement for re.sub, which can refer to the groups of the pattern {quoted(pattern)}",
                hint=f"Python says: {error}.",
            ) from None
    return [(old, new) for old, new in pairs]


def _renamed(weights: Weights, keys: Any, key: str) -> Weights:
    """Rename the weights according to `revise_keys`.

    Raises:
        ConfigError: two tensors get the same name, or an entry changes no name.
    """
    beginnings = isinstance(keys, Mapping)
    pairs = _checked_keys(keys)
    names = list(weights)
    if beginnings:
        used = [next((old for old, _ in pairs if name.startswith(old)), None) for name in names]
        unused = [old for old, _ in pairs if old not in used]
        swaps = dict(pairs)
        names = [
            name if old is None else swaps[old] + name.removeprefix(old) for name, old in zip(names, used, strict=True)
        ]
    else:
        unused = []
        for pattern, replacement in pairs:
            if not any(re.search(pattern, name) for name in names):
                unused.append(pattern)
            names = [re.sub(pattern, replacement, name) for name in names]
    if unused:
        accepted = "the prefix of a name in the file" if beginnings else "a pattern that matches a name in the file"
        if unused[0] != pairs[0][0]:
            accepted += " that no earlier prefix matches" if beginnings else ", after the replacements before it"
        above = [f"{module}." for module in above_all(weights)] if beginnings else []
        raise ConfigError(key, unused[0], accepted, options=above, hint=f"The file has {some(weights, SHOWN)}.")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ConfigError(
            key, keys, f"replacements that keep all names distinct; two tensors of the file would be named {twice}"
        )
    return dict(zip(names, weights.values(), strict=True))


def _within(weights: Weights, own: Weights) -> str:
    """Return the prefix of the file's tensors in the model, such as `net.` if the file contains only the network.

    This is the part of the model in which a name of the file is found; empty if a name is found in the model itself.
    """
    if any(name in own for name in weights):
        return ""
    parts = dict.fromkeys(f"{name.partition('.')[0]}." for name in own if "." in name)
    return next((part for part in parts if any(part + name in own for name in weights)), "")


def _filter(asked: LoadFrom, names: Iterable[str], key: str) -> Callable[[str], bool]:
    """Return a predicate on names: whether the tensor with this name is loaded."""
    names = sorted(names)
    for kind in ("include", "exclude"):
        for pattern in getattr(asked, kind):
            if not any(fits_within(pattern, name) for name in names):
                accepted = "a glob that matches the name of a tensor or of a module that contains one"
                hint = f"The tensors are {some(names, SHOWN)}."
                raise ConfigError(f"{key}.{kind}", pattern, accepted, options=[*above_all(names), *names], hint=hint)

    def chosen(name: str) -> bool:
        taken = not asked.include or any(fits_within(pattern, name) for pattern in asked.include)
        return taken and not any(fits_within(pattern, name) for pattern in asked.exclude)

    return chosen


def _advice(missing: Sequence[str], foreign: Sequence[str], before: str, *, revisable: bool) -> str:
    """Suggest how more names would match: another prefix for all (if `revise_keys` can be set), or the nearest name for
    the first.

    Args:
        missing: names of the model.
        foreign: names of the file.
        before: the prefix that was added to the names of the file; `revise_keys` would replace it.
        revisable: whether `revise_keys` can be set.
    """
    if not missing or not foreign:
        return ""
    for old, new in _beginnings(missing[0], foreign) if revisable else ():
        count = sum(new + name.removeprefix(old) in missing for name in foreign if name.startswith(old))
        if count > len(missing) // 2 and old.startswith(before) and (old != before or not before):
            prefix = old.removeprefix(before)
            prefix = prefix if prefix[:1].isalpha() else f'"{prefix}"'  # a quoted key is valid only in YAML
            keys = f'{prefix}: "{new}"' + (f', "": "{before}"' if before else "")
            match = (
                f"{count} of the {len(missing)} missing tensors match" if missing[1:] else "the missing tensor matches"
            )
            return f" With load_from: {{path: …, revise_keys: {{{keys}}}}}, {match}."
    close = nearest(missing[0], foreign)
    return "" if close is None else f" In this checkpoint, the name nearest to {missing[0]} is {close}."


def _beginnings(name: str, others: Sequence[str]) -> list[tuple[str, str]]:
    """Return, for each of `others` that ends like `name`, the two prefixes in which they differ."""
    found = []
    for other in others:
        ours, theirs = name.split("."), other.split(".")
        while ours and theirs and ours[-1] == theirs[-1]:
            ours.pop()
            theirs.pop()
        if len(ours) < len(name.split(".")):
            found.append(("".join(f"{word}." for word in theirs), "".join(f"{word}." for word in ours)))
    return list(dict.fromkeys(found))
