"""Files of the user's own modules, which a logged model needs when it is served."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # most shippers log no model, and importing torch takes a second
    from torch import nn

OURS = ("trainyard", "hydra_plugins")
"""Top-level modules that are installed with the requirement on this package."""


def modules_of(net: nn.Module, config: Any) -> set[str]:
    """Return the modules that define a model's classes and the `_target_`s of its config."""
    return {type(module).__module__ for module in net.modules()} | set(_targets(config))


def files_of(modules: Iterable[str], folders: Iterable[str | Path]) -> dict[Path, Path]:
    """Return the files of modules and of all modules that they import, as far as the files are below `folders`.

    Imports are read from the source, including those within functions. Files elsewhere belong to installed packages,
    and are omitted.

    Args:
        modules: full names. If a name continues within a module (`nets.Net`), the module is used.
        folders: the folders from which modules are imported, in order.

    Returns:
        The files, by their paths relative to the folder.
    """
    roots = [Path(folder) for folder in folders]
    found: dict[Path, Path] = {}
    seen: set[str] = set()
    waiting = sorted(modules)
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] in OURS:
            continue
        seen.add(name)
        place = _place(name, roots)
        if place is None:
            waiting += [name.rpartition(".")[0]] if "." in name else []
            continue
        root, file = place
        if file.relative_to(root) not in found:
            found[file.relative_to(root)] = file
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += [package, *_imports(file, package)]
    return found


def copy(files: Mapping[Path, Path], folder: Path) -> list[str]:
    """Copy files to their places below `folder`; return its content, for MLflow's `code_paths`."""
    for place, file in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / place)
    return sorted(str(path) for path in folder.iterdir()) if files else []


def _place(name: str, roots: list[Path]) -> tuple[Path, Path] | None:
    """Return the folder and the file of a module; None if there is no such file."""
    if not name:
        return None
    parts = name.split(".")
    for root in roots:
        for file in (root.joinpath(*parts, "__init__.py"), root.joinpath(*parts).with_suffix(".py")):
            if file.is_file():
                return root, file
    return None


def _imports(file: Path, package: str) -> Iterator[str]:
    """Yield the imports of a file, by full names; some are names of a module's contents."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            above = above[: len(above) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _targets(config: Any) -> Iterator[str]:
    """Yield the values of all `_target_`s in a config."""
    if isinstance(config, Mapping):
        if isinstance(config.get("_target_"), str):
            yield config["_target_"]
        for value in config.values():
            yield from _targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from _targets(value)
