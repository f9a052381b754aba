"""From the shell to the first optimisation step, against a bare script that imports torch and takes one Adam step.

Both are whole processes, started in turn; each writes down the moment at which its first step is done.

    python scripts/bench/startup.py [--rounds 7] [--json FILE] [OVERRIDE ...]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BARE = """
import sys, time
import torch
model = torch.nn.Linear(64, 10)
optimizer = torch.optim.Adam(model.parameters())
model(torch.randn(64, 64)).sum().backward()
optimizer.step()
open(sys.argv[1], "w").write(repr(time.time()))
"""

# A hook of the user's own: it notes the moment after the first step, and ends the process.
HOOK = """
import os, time
from trainyard.hooks import Hook

class FirstStep(Hook):
    priority = "HIGHEST"

    def __init__(self, path):
        self.path = path

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        with open(self.path, "w") as file:
            file.write(repr(time.time()))
        os._exit(0)
"""


def seconds(command: list[str], folder: Path, note: Path) -> float:
    """From starting a command to the moment that it wrote into `note`."""
    note.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")])}
    begin = time.time()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    moment = float(note.read_text())
    time.sleep(1.0)  # the shipper sees that its trainer is gone, and ends
    return moment - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("overrides", nargs="*", default=["model=mlp", "optim=adam"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        note = folder / "moment"
        (folder / "bare.py").write_text(BARE)
        (folder / "first_step.py").write_text(HOOK)
        bare = [sys.executable, "bare.py", str(note)]
        ours = [sys.executable, str(ROOT / "train.py"), *options.overrides]
        ours += ["+hook.first._target_=first_step.FirstStep", f"+hook.first.path={note}"]
        seconds(bare, folder, note), seconds(ours, folder, note)
        pairs = [(seconds(bare, folder, note), seconds(ours, folder, note)) for _ in range(options.rounds)]
    more = [own - base for base, own in pairs]
    print(f"bare script   {statistics.median(base for base, _ in pairs):.2f} s")
    print(f"trainyard     {statistics.median(own for _, own in pairs):.2f} s")
    print(f"difference    {statistics.median(more):.2f} s  ({min(more):.2f} to {max(more):.2f})")
    if options.json:
        options.json.write_text(json.dumps({"pairs": pairs, "difference": statistics.median(more)}))


if __name__ == "__main__":
    main()
