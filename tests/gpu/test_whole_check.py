"""The whole check, on the CPU, where nothing can be imported but what it lists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"

# Imported at the start of every process: of what is installed, the listed packages alone are there.
ONLY_LISTED = """
import sys
from importlib.machinery import PathFinder

MODULES = {modules!r}
PACKAGES = {packages!r}


class Listed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = PathFinder.find_spec(name, path, target)
        if path is None and found is not None and name not in MODULES:
            places = [found.origin or "", *(found.submodule_search_locations or ())]
            if any("site-packages" in place for place in places):
                return None
        return found

    @classmethod
    def find_distributions(cls, *arguments):
        for found in PathFinder.find_distributions(*arguments):
            if found.metadata["Name"].lower().replace("_", "-").replace(".", "-") in PACKAGES:
                yield found


sys.meta_path[:] = [Listed if finder is PathFinder else finder for finder in sys.meta_path]
"""


def with_requirements(names: set[str]) -> set[str]:
    """The packages, and what they require."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        try:
            lines = requires(name) or ()
        except PackageNotFoundError:
            continue
        needed = [
            each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
        names |= {canonicalize_name(each.name) for each in needed} - found
    return found


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "gpu"))
    from requirements import requirements

    return requirements()


def environment(folder: Path, packages: set[str]) -> dict[str, str]:
    """The environment of a process in which these packages, PyTorch and NumPy alone are installed."""
    # A CUDA build of PyTorch requires Triton.
    packages = {canonicalize_name(name) for name in packages} | with_requirements({"torch"}) | {"numpy", "triton"}
    owners = packages_distributions().items()
    modules = {module for module, own in owners if packages & {canonicalize_name(name) for name in own}}
    (folder / "sitecustomize.py").write_text(ONLY_LISTED.format(modules=modules, packages=packages))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TRAINYARD"))}
    return kept | {
        "PYTHONPATH": str(folder),
        "TRAINYARD_PYTHON": sys.executable,
        "TRAINYARD_CHECK_DEVICE": "cpu",
    }


def check(environ: dict[str, str], *arguments: str) -> Any:
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.slow
def test_every_part_has_its_results(tmp_path: Path, listed: Any) -> None:
    from tables import BEGIN, END, fill

    from catalog import PARTS, STACK_SIDES

    file = tmp_path / "results.json"
    done = check(environment(tmp_path, {each.package for each in listed}), "--json", str(file))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    content = json.loads(file.read_text())
    assert content["machine"]["device"] == "CPU"
    assert content["sizes"] == "quick"
    assert list(content["parts"]) == [part.name for part in PARTS]
    for part in PARTS:
        own = content["parts"][part.name]
        assert (own["state"], own["error"]) == ("done", None)
        for table in part.tables:
            rows = own["tables"][table.key]
            assert set(rows) == set(table.rows)
            assert not any("failed" in row for row in rows.values())

    tables = {key: rows for own in content["parts"].values() for key, rows in own["tables"].items()}
    needs = {name for name, row in tables["stacks"].items() if row.get("missing") == "needs CUDA"}
    assert needs == {"one run, captured", "torch.func by hand, captured, K = 128", "8 processes, MPS"}
    timed = set(STACK_SIDES) - needs - {"JAX jit(vmap), K = 128"}
    assert all(tables["stacks"][name]["same"] and tables["stacks"][name]["values"] for name in timed)
    assert tables["tests"]["failed"]["found"] == "0"
    assert int(tables["tests"]["skipped"]["found"]) > 100
    assert tables["sweep"]["jobs"]["found"] == "16 done"
    assert tables["whole_sweep"]["jobs"]["found"] == "8 done"
    assert tables["waits"]["iterations"]["found"] == 40
    page = fill(f"{BEGIN}\n{END}\n", content)
    assert "not yet run" not in page
    assert "no result" not in page


def test_a_package_that_is_missing_is_named(tmp_path: Path, listed: Any) -> None:
    packages = {each.package for each in listed} - {"cloudpickle", "scikit-learn"}
    done = check(environment(tmp_path, packages), "--json", str(tmp_path / "results.json"))
    assert done.returncode == 2
    assert (
        "missing packages: cloudpickle, scikit-learn; docs/gpu.md describes how to provide their wheels" in done.stderr
    )
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-such-folder"], "the folder 'no-such-folder' of wheels does not exist"),
        (["."], "no wheels in '.'; docs/gpu.md describes how to download them"),
        (["--json"], "--json needs a value"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_arguments_that_cannot_work(tmp_path: Path, arguments: list[str], told: str) -> None:
    command = ["bash", str(SCRIPT), *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stderr
