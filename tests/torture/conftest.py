"""`scripts/torture.py`, in this process."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "torture.py"


@pytest.fixture(scope="session")
def torture() -> Any:
    """The script as a module; its folder is on the path then."""
    spec = importlib.util.spec_from_file_location("torture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
