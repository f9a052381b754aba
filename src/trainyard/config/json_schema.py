"""JSON schemas of config files, for editors: from the signatures and docstrings of the targets that they name.

A schema checks the same properties of a config as a training (`trainyard.config.build.check_node`): the arguments of
each `_target_` and their types. It contains the description of each argument from the docstring. See
https://json-schema.org/draft-07.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml  # type: ignore[import-untyped,unused-ignore]

from trainyard.config.annotations import LISTS, MAPPINGS, UNKNOWN, annotation, is_tensor, may_be_share, options_of
from trainyard.config.build import locate
from trainyard.config.schema import MODES, PARTS, Settings
from trainyard.errors import TrainyardError

Schema = dict[str, Any]

_DRAFT = "http://json-schema.org/draft-07/schema#"
WHOLE = "train"
"""Name of the schema of complete configs: the primary config, and configs with `@package _global_`."""
_WORDS = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", type(None): "null"}
_LATER: Schema = {"type": "string", "pattern": r"\$\{|^(auto|auto_or_null|\?\?\?)$"}  # what stands for a value
_VALUE: Schema = {"$ref": "#/definitions/value"}
# Keys beside the arguments of a target: Hydra's, and what the parts of a training take out of their configs.
_BESIDE = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_TAKEN_OUT = ("defaults", "paramwise", "priority", "output", "target")
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"(\w+(?:, \w+)*)(?: \([^)]*\))?: (.*)")


def targets(content: Any) -> Iterator[str]:
    """Yield the `_target_` of each node in the content of a config file."""
    if isinstance(content, Mapping):
        target = content.get("_target_")
        if isinstance(target, str) and target != "???":
            yield target
        content = list(content.values())
    if isinstance(content, list):
        for entry in content:
            yield from targets(entry)


def of_group(name: str, named: Iterable[str], tell: Callable[[str], object] = print) -> Schema:
    """Return the schema of the option files of a group.

    Args:
        name: the name of the group.
        named: the targets that its options name, as dotted paths.
        tell: called with a message for each target that cannot be imported and is therefore not checked.
    """
    return {
        "$schema": _DRAFT,
        "title": f"An option of {name}",
        "$ref": "#/definitions/node",
        "definitions": _definitions(named, tell),
    }


def of_whole(named: Iterable[str], comments: Mapping[str, str], tell: Callable[[str], object] = print) -> Schema:
    """Return the schema of complete configs.

    Args:
        named: the targets of all groups.
        comments: the description of each setting at the top level.
        tell: see `of_group`.
    """
    hints = typing.get_type_hints(Settings)
    properties: Schema = {"defaults": {"type": "array"}, "hydra": {"type": "object"}}
    for field in fields(Settings):
        properties[field.name] = _of_hint(hints[field.name]) | _described(comments.get(field.name), field.default)
    properties["mode"] = {"enum": list(MODES)} | _described(comments.get("mode"), "train")
    properties |= {part: {"$ref": "#/definitions/value"} for part in PARTS}
    return {
        "$schema": _DRAFT,
        "title": "A training config",
        "type": "object",
        "properties": properties,
        "definitions": _definitions(named, tell),
    }


def comments_of(text: str) -> dict[str, str]:
    """Return the comment above each key at the top level of a YAML file.

    >>> comments_of("# Every random choice.\\nseed: 0")
    {'seed': 'Every random choice.'}
    """
    found, above = {}, list[str]()
    for line in text.splitlines():
        if line.startswith("#"):
            above.append(line.lstrip("# "))
            continue
        key = re.match(r"(\w+):", line)
        if key and above:
            found[key[1]] = " ".join(above)
        above = []
    return found


def _definitions(named: Iterable[str], tell: Callable[[str], object]) -> Schema:
    known: Schema = {}
    for path in sorted(set(named)):
        try:
            known[path] = _of_target(path, locate(path, "_target_"))
        except (TrainyardError, TypeError, ValueError) as error:
            tell(f"{path} was not checked: {error}")
    choices = [
        {
            "if": {"properties": {"_target_": {"const": path}}, "required": ["_target_"]},
            "then": {"$ref": f"#/definitions/{path}"},
        }
        for path in known
    ]
    group = {"if": {"not": {"required": ["_target_"]}}, "then": {"additionalProperties": _VALUE}}
    target: Schema = {"anyOf": [{"enum": list(known)}, {"type": "string"}]} if known else {"type": "string"}
    node = {"type": "object", "properties": {"_target_": target}, "allOf": [*choices, group]}
    value = {
        "allOf": [
            {"if": {"type": "object"}, "then": {"$ref": "#/definitions/node"}},
            {"if": {"type": "array"}, "then": {"items": _VALUE}},
        ]
    }
    return {"node": node, "value": value, **known}


def _of_target(path: str, target: Callable[..., Any]) -> Schema:
    """Return the schema of the nodes that name a class or function."""
    parameters = inspect.signature(target).parameters.values()
    summary, described = docstring_of(target)
    properties: Schema = {}
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            hint = annotation(target, parameter.name)
            text = described.get(parameter.name)
            values = _of_hint(hint)
            if may_be_share(target, parameter.name):
                values = json.loads(json.dumps(values).replace('"integer"', '"number"'))
            properties[parameter.name] = values | _described(text, parameter.default)
    properties |= {name: {} for name in (*_BESIDE, *_TAKEN_OUT) if name not in properties}
    closed = not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {
        "title": path,
        **({"description": summary} if summary else {}),
        "properties": properties,
        **({"additionalProperties": False} if closed else {}),
    }


def _of_hint(hint: Any) -> Schema:
    """Return the schema of the values that fit an annotation; for types that a config cannot contain, any node."""
    if hint is UNKNOWN or hint is Any:
        return dict(_VALUE)
    found: list[Schema] = []
    for option in options_of(hint):
        if is_tensor(option):
            continue
        schema = _of_option(option)
        if schema == _VALUE:
            return schema
        found += [schema] if schema not in found else []
    return {"anyOf": [*found, _LATER]} if found else dict(_VALUE)


def _of_option(option: Any) -> Schema:
    if option in _WORDS:
        return {"type": _WORDS[option]}
    kind, arguments = get_origin(option) or option, get_args(option)
    if kind is Literal:
        return {"enum": list(arguments)}
    if kind in LISTS:
        if kind is tuple and arguments and arguments[-1] is not ...:
            return {"type": "array", "minItems": len(arguments), "maxItems": len(arguments)}
        return {"type": "array", **({"items": _of_hint(arguments[0])} if arguments else {})}
    if kind in MAPPINGS:
        return {"$ref": "#/definitions/value", "type": "object"}
    return dict(_VALUE)


def _described(text: str | None, default: Any) -> Schema:
    plain = default is None or isinstance(default, bool | int | float | str)
    finite = not isinstance(default, float) or abs(default) < float("inf")
    return ({"description": text} if text else {}) | ({"default": default} if plain and finite else {})


def docstring_of(target: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and the description of each argument."""
    text = inspect.getdoc(target) or ""
    if isinstance(target, type) and target.__doc__ is None:
        text = ""  # a base's
    summary = " ".join(text.partition("\n\n")[0].split())
    section = _SECTION.search(text)
    found: dict[str, str] = {}
    if section is None:
        return summary, found
    names: list[str] = []
    depth = None
    for line in text[section.end() :].splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip():
            depth = indent if depth is None else depth
            if indent < depth:
                break
        begins = _ARGUMENT.match(line.strip()) if indent == depth else None
        if begins:
            names = begins[1].split(", ")
            found |= dict.fromkeys(names, begins[2])
        elif line.strip() and names and depth is not None and indent > depth:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return summary, found


def read(file: Path) -> Any:
    """Return the content of a config file; None if it cannot be read."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
