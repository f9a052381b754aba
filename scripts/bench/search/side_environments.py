"""Environments of peers in searches: `.venv-search-NAME`, of the packages in `requirements-NAME.txt`."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parent


class MissingPeerError(Exception):
    """A peer cannot be installed here."""


def python(name: str, root: Path) -> Path:
    """Return the interpreter of an environment, which is made if it is missing or has other packages.

    Args:
        name: the side.
        root: the folder that the environment is in.

    Raises:
        MissingPeerError: pip cannot install it; with the last line of what it says.
    """
    wanted = f"{sys.version}\n{(FOLDER / f'requirements-{name}.txt').read_text()}"
    own = root / f".venv-search-{name}"
    found, stamp = own / "bin" / "python", own / ".trainyard-installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return found
    print(f"Making {own.name}", flush=True)
    venv.create(own, clear=True, with_pip=True)
    pip = [str(found), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-r"]
    done = subprocess.run([*pip, str(FOLDER / f"requirements-{name}.txt")], check=False, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise MissingPeerError(f"cannot be installed: {said[-1].removeprefix('ERROR: ')}")
    stamp.write_text(wanted)
    return found
