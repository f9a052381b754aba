"""Time from the start of the command to the end of the first optimization step, in a new process.

Trainyard runs `python train.py model=mlp optim=adam`, with a shipper for MLflow. The bare script and Lightning train a
linear model for one step with Adam. "First line of output" is the first line in a terminal. "First job of a sweep" ends
when the first of four jobs of `train.py -m` starts.

**Result:** most of a start is the import of torch ([parts of a start](performance.md#a-start)).
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from environment import ROOT
from measure import Comparison, Session, Table, take_turns_here

TORCH = """
import sys, time
import torch
open(sys.argv[1], "w").write(repr(time.time()))
"""

BARE = """
import sys, time
import torch
model = torch.nn.Linear(64, 10)
optimizer = torch.optim.Adam(model.parameters())
model(torch.randn(64, 64)).sum().backward()
optimizer.step()
open(sys.argv[1], "w").write(repr(time.time()))
"""

LIGHTNING = """
import os, sys, time
import lightning
import torch

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

class FirstStep(lightning.Callback):
    def on_train_batch_end(self, *arguments):
        open(sys.argv[1], "w").write(repr(time.time()))
        os._exit(0)

data = torch.utils.data.TensorDataset(torch.randn(640, 64), torch.randint(10, (640,)))
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
quiet = {"logger": False, "enable_checkpointing": False}
trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=[FirstStep()], **quiet)
trainer.fit(Module(), loader)
"""

# A hook of the user's: it records the time after the first step, and ends the process.
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


LINE, JOB = "trainyard, first line of output", "trainyard, first job of a sweep"


def tables(session: Session) -> Iterator[Table]:
    script = partial(first_step, session.folder)
    sides = {
        "trainyard": partial(train, session.folder, ["model=mlp", "optim=adam"]),
        LINE: partial(first_line, session.folder, ["model=mlp", "optim=adam"]),
        JOB: partial(first_job, session.folder, ["model=mlp", "optim=adam", "optim.lr=1e-4,1e-3,1e-2,1e-1"]),
        "import torch": partial(script, written(session.folder, "only_torch.py", TORCH)),
        "bare script": partial(script, written(session.folder, "bare.py", BARE)),
        "Lightning": partial(script, written(session.folder, "with_lightning.py", LIGHTNING)),
    }
    values, failed = take_turns_here(session, sides)
    comparisons = [
        Comparison("trainyard", "bare script", 0.3, "difference"),
        Comparison("trainyard", "bare script", 0.85),
        Comparison("trainyard", "Lightning"),
        Comparison("trainyard", "import torch", 0.35, "difference"),
        Comparison(LINE, None, 0.5, "value"),
        Comparison(JOB, "import torch", 1.0, "difference"),
    ]
    yield Table("Start-up to the first step", "s", values, failed, comparisons)


def train(folder: Path, overrides: Sequence[str]) -> float:
    """Return the seconds that `train.py` takes to the end of its first step."""
    written(folder, "first_step.py", HOOK)
    note = folder / "moment"
    hook = ["+hook.first._target_=first_step.FirstStep", f"+hook.first.path={note}"]
    seconds = first_step(folder, ROOT / "train.py", *overrides, *hook, note=note)
    time.sleep(1.0)  # the shipper notices that its trainer has ended, and ends too
    return seconds


def first_line(folder: Path, overrides: Sequence[str]) -> float:
    """Return the seconds that `train.py` takes to its first line of output in a terminal."""
    written(folder, "first_step.py", HOOK)
    hook = ["+hook.first._target_=first_step.FirstStep", f"+hook.first.path={folder / 'moment'}"]
    reader, terminal = pty.openpty()
    begin = time.time()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides, *hook],
        cwd=folder,
        env=surroundings(folder),
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    seconds, output = None, b""
    with suppress(OSError):  # the other end is closed
        while piece := os.read(reader, 4096):
            output += piece
            if seconds is None and b"\n" in output.lstrip():
                seconds = time.time() - begin
    os.close(reader)
    process.wait()
    if seconds is None:
        raise RuntimeError(f"no line of output: status {process.returncode}")
    time.sleep(1.0)  # as in `train`
    return seconds


def first_job(folder: Path, overrides: Sequence[str]) -> float:
    """Return the seconds that a sweep takes until its first job runs."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "-m",
            *overrides,
            "loop.max_epochs=1",
            "hydra.sweep.dir=sweep",
        ]
        begin = time.time()
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(" ".join(done.stderr.split())[-200:] or f"status {done.returncode}")
        records = map(json.loads, Path(name, "sweep", "manifest.jsonl").read_text(encoding="utf-8").splitlines())
        running = [record["time"] for record in records if record.get("state") == "running"]
    return float(min(running)) - begin


def surroundings(folder: Path) -> dict[str, str]:
    """Return the environment of a process that may import modules from the folder."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])}


def first_step(folder: Path, script: Path, *arguments: str, note: Path | None = None) -> float:
    """Return the seconds from a script's start to the time that it writes into `note`, or its first argument."""
    moment = note or folder / "moment"
    moment.unlink(missing_ok=True)
    command = [sys.executable, str(script), *(arguments if note else [str(moment)])]
    begin = time.time()
    done = subprocess.run(command, cwd=folder, env=surroundings(folder), capture_output=True, text=True, check=False)
    if not moment.exists():
        raise RuntimeError(" ".join(done.stderr.split())[-200:] or f"status {done.returncode}")
    return float(moment.read_text()) - begin


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path
