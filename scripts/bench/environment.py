"""Environment of the benchmarks: `.venv-bench`, with the project and the peers it is compared with."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".venv-bench"
PYTHON = BENCH / "bin" / "python"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def enter(here: bool = False, threads: int = 1) -> None:
    """Continue in `.venv-bench` (unless `here`), with this tree's code and as many threads for CPU kernels."""
    if not here:
        python = make()
        if Path(sys.prefix) != BENCH:
            sys.exit(subprocess.run([str(python), *sys.argv], check=False).returncode)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    sys.path.insert(0, os.environ["PYTHONPATH"])


def make() -> Path:
    """Return the interpreter of `.venv-bench`, which is made if it is missing or does not match the files.

    A peer that cannot be installed is left out, with a message; the benchmarks name it as missing.
    """
    sources = (ROOT / "pyproject.toml", ROOT / "constraints.txt", REQUIREMENTS)
    wanted = "\n".join([str(ROOT), sys.version, *(source.read_text() for source in sources)])
    stamp = BENCH / ".trainyard-installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return PYTHON
    print(f"Creating {BENCH.name} (takes minutes, because torch, MLflow and the other tools are large)", flush=True)
    same_python = stamp.exists() and stamp.read_text().startswith(f"{ROOT}\n{sys.version}\n")
    stamp.unlink(missing_ok=True)  # until everything is installed again
    venv.create(BENCH, clear=not same_python, with_pip=True)
    if not _install("-e", f"{ROOT}[search]"):
        sys.exit(f"Trainyard could not be installed in {BENCH.name} (see the error of pip above).")
    if not _install("-r", str(REQUIREMENTS)):
        for peer in peers():
            if not _install(peer):
                print(f"{peer} could not be installed (see the error of pip above) and is skipped.", flush=True)
    stamp.write_text(wanted)
    return PYTHON


def peers() -> list[str]:
    """Return the lines of requirements.txt that name a package."""
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [line for line in lines if line]


def _install(*what: str) -> bool:
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # torch is named so that pip does not replace the installed build.
    command = [*pip, "-c", str(ROOT / "constraints.txt"), *what, "torch"]
    return subprocess.run(command, check=False).returncode == 0
