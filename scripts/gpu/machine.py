"""Checks whether the machine can run the check, and records its properties.

    python scripts/gpu/machine.py DEVICE FILE.json

If the machine cannot run the check, the script prints a line and ends with status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from requirements import requirements
from results import Results


def main() -> None:
    device, file = sys.argv[1:]
    named = {"torch": "torch", "numpy": "numpy"} | {each.module: each.package for each in requirements()}
    missing = [package for module, package in named.items() if find_spec(module) is None]
    if missing:
        sys.exit(f"missing packages: {', '.join(missing)}; docs/gpu.md describes how to provide their wheels")
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        sys.exit(f"torch 2.11 or newer is required, but this is torch {torch.__version__}")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    if device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} ({built}) finds no CUDA device")
    facts = {
        "device": "CPU" if device == "cpu" else torch.cuda.get_device_name(device),
        "python": sys.version.split()[0],
        "torch": f"{torch.__version__}, {built}",
        "cores": len(os.sched_getaffinity(0)),
        "commit": _said("git", "describe", "--always", "--dirty"),
    }
    if device != "cpu":
        facts["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    Results(Path(file)).change(lambda content: content.update(machine=facts))
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value))


def _said(*command: str) -> str | None:
    """Return the first line that a program prints; None if the program is missing or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0] or None


if __name__ == "__main__":
    main()
