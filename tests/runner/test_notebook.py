"""A Runner in a notebook: no Hydra application, no config folder, under 20 lines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/notebook.ipynb"

# What a kernel does: the cells one after the other in one namespace, the value of a last expression shown.
KERNEL = """
import ast, json, sys
sys.ps1 = "In : "
names = {"__name__": "__main__"}
for cell in json.load(sys.stdin):
    parsed = ast.parse(cell)
    last = parsed.body.pop() if isinstance(parsed.body[-1], ast.Expr) else None
    exec(compile(parsed, "cell", "exec"), names)
    if last is not None and (value := eval(compile(ast.Expression(last.value), "cell", "eval"), names)) is not None:
        print(value)
from hydra.core.global_hydra import GlobalHydra
assert not GlobalHydra.instance().is_initialized()
"""


def cells() -> Any:
    read = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in read["cells"] if cell["cell_type"] == "code"]


def test_it_has_under_20_lines() -> None:
    assert sum(len(cell.splitlines()) for cell in cells()) < 20


def test_it_runs_again_and_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", KERNEL]
    twice = json.dumps(cells() * 2)
    done = subprocess.run(
        command, input=twice, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    once = lines[: len(lines) // 2]
    assert lines == once * 2
    assert len([line for line in once if line.startswith("val  epoch ")]) == 10
    accuracy = next(line for line in once if line.startswith("0."))
    tested = once[-1]
    assert float(accuracy) > 0.95
    right, _, first = tested.partition(" of the test set is right; ")
    assert float(right) > 0.95
    assert first.endswith("of the first 256 are wrong")
    assert list(tmp_path.iterdir()) == []


def test_nothing_was_run_before_it_was_saved() -> None:
    """Outputs would go stale, and tell whose machine it was."""
    read = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in read["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
