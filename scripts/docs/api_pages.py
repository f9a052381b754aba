"""Pages of the Python API: one for each public package, with an entry for each name of its `__all__`."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src/trainyard"
FORMER = "trainyard.dist"  # the former name of `trainyard.distributed`


@cache
def public_names() -> dict[str, list[str]]:
    """Return the names in the `__all__` of each public package, without names that a package above it also has."""
    found: dict[str, list[str]] = {"trainyard.inference": ["load", "Predictor"]}
    for file in sorted(PACKAGE.rglob("__init__.py"), key=lambda file: (len(file.parts), file)):
        package = ".".join(file.parent.relative_to(PACKAGE.parent).parts)
        above = [name for other, names in found.items() if package.startswith(f"{other}.") for name in names]
        names = [name for name in _all_of(file) if name not in above]
        if names and package != FORMER:
            found[package] = names
    return dict(sorted(found.items()))


def api_pages() -> dict[str, str]:
    """Return the Markdown of each page, by its path in the site."""
    return {
        f"reference/api/{package}.md": f"# {package}\n\n{_summary(package)}\n\n"
        + "\n\n".join(f"::: {package}.{name}" for name in names)
        for package, names in public_names().items()
    }


def _all_of(file: Path) -> list[str]:
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and [ast.unparse(each) for each in statement.targets] == ["__all__"]:
            return list(ast.literal_eval(statement.value))
    return []


def _summary(package: str) -> str:
    folder = PACKAGE.parent.joinpath(*package.split("."))
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
