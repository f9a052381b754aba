"""For the tests of the check: its modules can be imported, here and in the processes that it starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [str(ROOT / name) for name in ("src", "scripts/gpu", "scripts/bench")]
    for folder in reversed(folders):
        monkeypatch.syspath_prepend(folder)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, *([before] if before else [])]))
