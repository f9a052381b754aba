"""Pages of the config options: from the files of conf/, and the signatures and docstrings of the classes they name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_origin

import yaml
from api_pages import public_names

from trainyard.config.annotations import LISTS, MAPPINGS, UNKNOWN, annotation, in_words, options_of
from trainyard.config.build import locate
from trainyard.config.json_schema import docstring_of, targets
from trainyard.config.schema_files import MODELINE
from trainyard.errors import TrainyardError

CONF = Path(__file__).resolve().parents[2] / "conf"
_COMMENT = re.compile(r"(?:^|\s)#\s?(.*)$")
_VALUES = (bool, int, float, str, type(None))
_NOT_SET = "not set"


@dataclass(frozen=True)
class Option:
    """A key of a config file.

    Args:
        key: with dots, from the top of the file.
        default: as YAML.
        comment: what stands above it or behind it.
        target: the dotted path of the class whose argument it is, or None.
    """

    key: str
    default: str
    comment: str
    target: str | None


@cache
def config_pages() -> dict[str, str]:
    """Return the Markdown of the pages of the groups of configs and of the settings, by their paths in the site."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        groups.setdefault(file.parent.relative_to(CONF).as_posix(), []).append(file)
    pages = {"reference/config/settings.md": _settings(groups.pop(".")[0])}
    for group, files in groups.items():
        sign = "+" if "/" in group and not group.startswith("hydra/") else ""  # it is in no list of defaults
        parts = [f"# {group}", f"Options of the group `{group}`: `{sign}{group}=NAME`. {_HOW}"]
        parts += [_of_file(file, f"## {file.stem}") for file in files]
        pages[f"reference/config/{group.replace('/', '-')}.md"] = "\n\n".join(parts)
    return pages


_HOW = (
    "The column *default* is the value in the option's file. *Not set* marks an argument of the class that is missing "
    "in the file. This argument has the default value of the class. To set the argument, write `+KEY=VALUE`."
)


def _settings(file: Path) -> str:
    return _of_file(file, "# Settings of a run") + (
        "\n\nThe settings are the keys at the top level of `conf/train.yaml`: `python train.py seed=1 precision=bf16`."
    )


def _of_file(file: Path, heading: str) -> str:
    text = file.read_text(encoding="utf-8")
    group = file.parent.relative_to(CONF).as_posix()
    named = options(text)
    prefix = _prefix(text, group)
    rows = [_row(prefix, option) for option in named]
    rows += [_row(prefix, option) for option in _further(text, named)]
    parts = [heading, _escaped(_head(text))]
    named_targets = list(dict.fromkeys(targets(yaml.safe_load(text))))
    if named_targets:
        parts.append("Class: " + ", ".join(map(_linked, named_targets)))
    if rows:
        parts.append("\n".join(["| key | default | accepted | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def options(text: str) -> list[Option]:
    """Return the keys of a config file that have values, in its order, without `defaults` and Hydra's own keys.

    >>> options("# Of the step.\\nlr: 0.1  # per step")
    [Option(key='lr', default='0.1', comment='Of the step. per step', target=None)]
    """
    node = yaml.compose(text)
    lines = text.splitlines()
    return [] if node is None else list(_options_of(node, lines, "", None))


def _options_of(node: Any, lines: list[str], above: str, target: str | None) -> Iterator[Option]:
    named = {key.value: value for key, value in node.value}
    found = named.get("_target_")
    target = found.value if found is not None else target
    for key, value in node.value:
        name = key.value
        if name == "defaults" or re.fullmatch(r"_\w+_", name):
            continue
        full = f"{above}{name}"
        nested = isinstance(value, yaml.MappingNode) and value.value
        if nested and not value.flow_style:
            inner = None if "_target_" in {each.value for each, _ in value.value} else target
            yield from _options_of(value, lines, f"{full}.", inner)
        else:
            default = _source(value, lines)
            yield Option(full, default, _comment(lines, key, value), target)


def _source(value: Any, lines: list[str]) -> str:
    start, end = value.start_mark, value.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column] if lines else ""
    if value.style in ("|", ">"):
        return " ".join(value.value.split())
    text = "\n".join(lines[start.line : end.line + 1])
    return " ".join(text[start.column :].split())


def _comment(lines: list[str], key: Any, value: Any) -> str:
    """Return the comment lines directly above a key, and the comment after its value, with its continuation lines."""
    above: list[str] = []
    number = key.start_mark.line - 1
    indent = key.start_mark.column
    while number >= 0 and lines[number].lstrip().startswith("#") and MODELINE not in lines[number]:
        if len(lines[number]) - len(lines[number].lstrip()) != indent:
            break
        above.insert(0, lines[number].lstrip("# "))
        number -= 1
    if number < 0 or MODELINE in lines[number]:
        above = []  # the head of the file
    end = value.end_mark
    behind = _COMMENT.search(lines[end.line][end.column :]) if end.line < len(lines) else None
    after = [behind[1].strip()] if behind else []
    for line in lines[end.line + 1 :] if behind else []:
        text = line.lstrip()
        if not text.startswith("#") or len(line) - len(text) <= indent + len(key.value):
            break
        after.append(text.lstrip("# "))
    return " ".join([*above, *after])


def _prefix(text: str, group: str) -> str:
    """Return what stands before the keys of a file on the command line: its package, or its group."""
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    found = package[1] if package else group.replace("/", ".")
    return "" if found in ("_global_", ".") else f"{found}."


def _head(text: str) -> str:
    """Return the comment at the top of a file, without what is for programs."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith((MODELINE, "# @package")):
            found.append(line.lstrip("# "))
    return " ".join(found)


def _located(target: str) -> Any:
    try:
        return locate(target, "_target_")
    except (TrainyardError, ImportError):
        return None  # of a library that is not installed


def _further(text: str, named: list[Option]) -> Iterator[Option]:
    """Yield the arguments of the class at the top of a file that the file does not name."""
    content = yaml.safe_load(text) or {}
    path = content.get("_target_")
    target = _located(path) if isinstance(path, str) else None
    if target is None:
        return
    there = {option.key.partition(".")[0] for option in named}
    there |= {group for each in content.get("defaults", ()) if isinstance(each, dict) for group in each}
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name in there:
            continue
        if parameter.default is parameter.empty:
            continue  # what Trainyard gives it, such as the parameters of an optimizer
        yield Option(parameter.name, "", "", path)


def _row(prefix: str, option: Option) -> str:
    accepted, meaning = "", _escaped(option.comment)
    target = _located(option.target) if option.target else None
    name = option.key.rpartition(".")[2]
    if target is not None and name in inspect.signature(target).parameters:
        hint = annotation(target, name)
        accepted = _accepted(hint)
        meaning = meaning or docstring_of(target)[1].get(name, "")
    shown = f"`{option.default}`" if option.default else _NOT_SET
    return "| " + " | ".join(_cell(each) for each in (f"`{prefix}{option.key}`", shown, accepted, meaning)) + " |"


def _accepted(hint: Any) -> str:
    """Describe the values of a config that fit an annotation, and whether a part that is built fits, too."""
    if hint is UNKNOWN or hint is Any:
        return ""
    kinds = options_of(hint)
    values = tuple(
        each for each in kinds if each in _VALUES or (get_origin(each) or each) in (Literal, *LISTS, *MAPPINGS)
    )
    parts = [in_words(Union[values])] if values else []  # noqa: UP007, a tuple
    if len(values) < len(kinds):
        parts.append("a `_target_`")
    return ", or ".join(parts)


def _linked(target: str) -> str:
    """Return the path of a class, as a link where the Python API has it."""
    package, _, name = target.rpartition(".")
    return f"[`{target}`][{target}]" if name in public_names().get(package, ()) else f"`{target}`"


def _escaped(comment: str) -> str:
    """Return a comment, which is plain text, as Markdown."""
    return re.sub(r"([*_<\[\]`])", r"\\\1", comment)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
