"""Imports run one way, from the parts of a training up to the command line, and in no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
ROOT = "trainyard"

# From the bottom to the top. A package imports those below it, and those beside it where that makes no circle.
LAYERS = (
    ("errors", "_fast_paths"),
    (
        "_torch_autograd",
        "_torch_internals",
        "_torch_vmap",
        "application",
        "batch",
        "checks",
        "console",
        "files",
        "foreground",
        "garbage",
        "host_memory",
        "nodes",
        "nvml",
        "quoting",
        "temporary",
        "redaction",
        "rng",
        "rng_state",
        "starting",
    ),
    ("config",),
    ("models", "data", "optim", "schedules", "metrics", "track"),
    ("distributed", "catalog"),
    ("step",),
    ("runner",),
    ("hooks", "reinforcement", "run"),
    ("fused",),
    ("command", "evaluate", "inference", "reproduction"),
    ("app",),
    ("train",),
    ("cli",),
    ("__main__",),
)
# Beside the layers: what these import, and who imports them.
BESIDE = {
    "sweep": (
        {"application", "config", "track", "errors", "checks", "files", "host_memory", "nodes", "nvml", "quoting"}
        | {"foreground", "garbage", "redaction", "starting"},
        {"app", "command", "catalog", "cli"},
    )
}
# Names of before, for configs and journals that hold them. They import what they stand for, and nobody imports them.
OLD_NAMES = {"dist": {"distributed"}, "record": {"run"}}

Imports = dict[str, set[str]]


def _name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in SRC.rglob("*.py")}


def _statements(node: ast.AST, *, at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements below a node; with `at_import` only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (at_import and _is_later(child)):
            yield from _statements(child, at_import=at_import)


def _is_later(node: ast.AST) -> bool:
    """Whether what is below a node does not run when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


@cache
def _imported(module: str, *, at_import: bool = False) -> set[str]:
    """The modules that a module imports: those of this project by their full names, others as they are written."""
    found: set[str] = set()
    for statement in _statements(ast.parse(MODULES[module].read_text(encoding="utf-8")), at_import=at_import):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert not statement.level, f"{module}: a relative import"
            names = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= {name if name in MODULES else str(statement.module) for name in names}
    return found - {module}


def _package(module: str) -> str | None:
    """The package, or the file, below `trainyard` that a module belongs to; None for `trainyard` itself and others."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == ROOT and rest else None


def _packages() -> dict[tuple[str, str], str]:
    """Each module with each package of this project that it imports, and the package that the module belongs to."""
    return {
        (module, imported): package
        for module in MODULES
        if (package := _package(module))
        for imported in {_package(each) for each in _imported(module)} - {None, package}
        if imported
    }


def _may_import(package: str, imported: str) -> bool:
    if package in OLD_NAMES or imported in OLD_NAMES:
        return imported in OLD_NAMES.get(package, ())
    if package in BESIDE:
        return imported in BESIDE[package][0]
    if imported in BESIDE:
        return package in BESIDE[imported][1]
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    return level[imported] <= level[package]


def test_every_package_has_its_place() -> None:
    placed = {name for names in LAYERS for name in names} | set(BESIDE) | set(OLD_NAMES)
    assert {package for module in MODULES if (package := _package(module))} <= placed


@pytest.mark.parametrize(
    ("package", "imported", "allowed"),
    [
        ("runner", "step", True),
        ("step", "runner", False),
        ("metrics", "data", True),
        ("data", "runner", False),
        ("fused", "run", True),
        ("run", "fused", False),
        ("sweep", "track", True),
        ("sweep", "run", False),
        ("fused", "sweep", False),
        ("app", "sweep", True),
        ("runner", "dist", False),
    ],
)
def test_the_rule(package: str, imported: str, allowed: bool) -> None:
    assert _may_import(package, imported) is allowed


def test_imports_run_one_way() -> None:
    wrong = {
        f"{module} imports {imported}"
        for (module, imported), package in _packages().items()
        if not _may_import(package, imported)
    }
    assert not wrong


def test_packages_import_each_other_in_no_circle() -> None:
    graph: Imports = {}
    for (_, imported), package in _packages().items():
        graph.setdefault(package, set()).add(imported)
    _sorted(graph)


def test_modules_import_each_other_in_no_circle() -> None:
    """Of a package's `__init__.py` only what it is imported for counts: its modules may import each other beside it."""
    graph = {module: _imported(module, at_import=True) & set(MODULES) for module in MODULES}
    _sorted(graph)


def _sorted(graph: Imports) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' imports '.join(reversed(error.args[1]))}")


def test_only_the_shipper_imports_mlflow() -> None:
    of_mlflow = {module for module in MODULES if any(name.split(".")[0] == "mlflow" for name in _imported(module))}
    assert of_mlflow
    assert all(module.startswith("trainyard.track.shipper") for module in of_mlflow), of_mlflow


def test_plugins_import_hydra_and_sweeps_only() -> None:
    """Hydra imports them at every start of every application."""
    for module in MODULES:
        if module.startswith("hydra_plugins"):
            known = {imported for imported in _imported(module) if imported.startswith(ROOT)}
            assert {_package(imported) for imported in known} <= {"sweep", "errors", "checks", "redaction"}, module
            eager = {imported for imported in _imported(module, at_import=True) if imported.startswith(ROOT)}
            assert not eager, module
