"""Resumption of a sweep: its command is run again, in the same folder and with the same overrides.

    python scripts/resume_sweep.py multirun/2026-01-31/12-00-00 [--app train.py]

Finished jobs are kept, interrupted jobs resume from their checkpoints, the others are run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the sweep's directory (hydra.sweep.dir)")
    parser.add_argument("--app", type=Path, default=ROOT / "train.py", help="the application; by default train.py")
    options = parser.parse_args()
    directory = options.directory.resolve()
    record = directory / "multirun.yaml"
    if not record.is_file():
        parser.error(f"{options.directory} is no sweep's directory: it has no multirun.yaml")
    hydra = OmegaConf.load(record).hydra
    # Hydra keeps its own mode (-m) among the overrides; the directory is given here
    own = [entry for entry in hydra.overrides.hydra if not entry.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    command = [sys.executable, str(options.app.resolve()), "-m", *own, *hydra.overrides.task]
    return subprocess.run([*command, f"hydra.sweep.dir={directory}"], cwd=hydra.runtime.cwd, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
