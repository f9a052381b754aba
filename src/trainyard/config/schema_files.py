"""Files of JSON schemas next to a folder of configs, and the line in each config that names its schema."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from trainyard.config.headers import count_headers, package_of
from trainyard.config.json_schema import WHOLE, Schema, comments_of, of_group, of_whole, read, targets

MODELINE = "# yaml-language-server: $schema="
_NOT_OURS = "hydra"  # the groups of Hydra's own node


def schemas(folders: list[Path], tell: Callable[[str], object] = print) -> dict[str, Schema]:
    """Return the schema of each group in some folders of configs, and that of complete configs, by name.

    Args:
        folders: the folders of configs; all of them name the targets of a group.
        tell: called with a message for each target that cannot be imported.
    """
    named: dict[str, set[str]] = {WHOLE: set()}
    comments: dict[str, str] = {}
    for folder in folders:
        for file in _files(folder):
            found = set(targets(read(file)))
            named.setdefault(name_of(file, folder), set()).update(found)
            named[WHOLE] |= found
            if file == folder / f"{WHOLE}.yaml":
                comments = comments_of(file.read_text(encoding="utf-8"))
    told: set[str] = set()

    def once(line: str) -> None:
        if line not in told:
            told.add(line)
            tell(line)

    whole = of_whole(named.pop(WHOLE), comments, once)
    return {WHOLE: whole} | {name: of_group(name, found, once) for name, found in sorted(named.items())}


def write(found: Mapping[str, Schema], folder: Path) -> list[Path]:
    """Write each schema into a folder, and return the files: `model.json`, `model/data_preprocessor.json`."""
    files = []
    for name, schema in found.items():
        file = folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{json.dumps(schema, indent=1)}\n", encoding="utf-8")
        files.append(file)
    return files


def put_modelines(configs: Path, folder: Path) -> list[Path]:
    """Add a line to each config that names its schema, or replace an earlier one; return the changed files.

    It is the first line, or follows the headers (`# @package _global_`), which Hydra reads only at the top of a file.

    Args:
        configs: the folder of the configs.
        folder: the folder of the schemas.
    """
    changed = []
    for file in _files(configs):
        path = os.path.relpath(folder / f"{name_of(file, configs)}.json", file.parent)
        before = file.read_text(encoding="utf-8")
        lines = [line for line in before.splitlines(keepends=True) if not line.startswith(MODELINE)]
        lines.insert(count_headers(lines), f"{MODELINE}{Path(path).as_posix()}\n")
        after = "".join(lines)
        if after != before:
            file.write_text(after, encoding="utf-8")
            changed.append(file)
    return changed


def name_of(file: Path, configs: Path) -> str:
    """Return the name of the schema of a config: that of its group, or of complete configs."""
    group = file.parent.relative_to(configs).as_posix()
    is_whole = group == "." or package_of(file.read_text(encoding="utf-8")) == "_global_"
    return WHOLE if is_whole else group


def _files(configs: Path) -> list[Path]:
    files = sorted(configs.rglob("*.yaml"))
    return [file for file in files if file.relative_to(configs).parts[0] != _NOT_OURS]
