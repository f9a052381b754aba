"""Shared libraries written in C, in place of those of a driver."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def compiled(source: str, library: Path, *options: str) -> Path:
    """Compile C code to a shared library; the test is skipped where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    code = library.with_suffix(".c")
    code.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", library, code], check=True)
    return library
