"""Successive halving whose jobs join lanes of running stacks, compared with stacks that end at each rung.

256 configurations of an MLP 64-64-64-10 on the digits data train for 27 epochs with Adam, on all cores, with one thread
per slot and without tracking. ASHA has rungs at 1, 3 and 9 epochs. In "cut stacks", a time limit
(`hydra.launcher.timeout`) turns joining off: jobs pause at each rung, and jobs that are promoted at the same time
continue in a new stack.

**Result:** joining nearly halves the time of the search.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from environment import ROOT
from measure import Comparison, Session, Table, take_turns_here

WIDTH = 32
_BUSY = re.compile(r"Lanes were used in (\d+) of (\d+) epochs")


@dataclass
class Search:
    """Search of one side.

    Attributes:
        busy: the share of lanes that trained, one number for each time that it ran.
        cpu: the CPU seconds of its processes, likewise.
    """

    trials: int
    width: int
    fed: bool
    busy: list[float]
    cpu: list[float]

    def __call__(self) -> float:
        """Run the search in a folder of its own, and return the seconds from the command's start to its end."""
        with tempfile.TemporaryDirectory(prefix="trainyard-lanes-") as folder:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            begin = perf_counter()
            done = subprocess.run(self.command(), cwd=folder, capture_output=True, text=True, check=False)
            wall = perf_counter() - begin
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode:
                raise RuntimeError(f"status {done.returncode}: {' '.join(done.stderr.split())[-200:]}")
            logs = [file.read_text() for file in Path(folder, "sweep/stacks").glob("*.log")]
            counts = [tuple(map(int, found.groups())) for text in logs for found in _BUSY.finditer(text)]
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if counts:
            self.busy.append(sum(busy for busy, _ in counts) / sum(lanes for _, lanes in counts))
        return wall

    def command(self) -> list[str]:
        """Return the command line."""
        search = ["hydra/sweeper=search", "hydra/sweeper/sampler=random", "hydra/sweeper/pruner=asha"]
        search += [f"hydra.sweeper.n_trials={self.trials}", f"hydra.sweeper.together={self.width}"]
        work = ["model=mlp", "model.hidden=[64,64]", "optim=adam", "loop.max_epochs=27", "tracker=none"]
        space = ["optim.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweep.dir=sweep"]
        stacks = [f"hydra.launcher.fuse={self.width}", *([] if self.fed else ["hydra.launcher.timeout=86400"])]
        return [sys.executable, str(ROOT / "train.py"), "-m", *search, *work, *space, *stacks]


def tables(session: Session) -> Iterator[Table]:
    trials = session.size(256, 24)
    width = min(WIDTH, trials // 3)
    sides = {"lanes": Search(trials, width, True, [], []), "cut stacks": Search(trials, width, False, [], [])}
    values, failed = take_turns_here(session.fewer(), sides, warm=False)
    title, comparisons = f"Successive halving of {trials} jobs", [Comparison("lanes", "cut stacks", 0.5)]
    yield Table(title, "s", values, failed, comparisons)
    cpu = {name: sides[name].cpu for name in values}
    yield Table(f"{title}: CPU time of all processes", "s", cpu, failed, comparisons)
    shares = {"lanes": [1 - each for each in sides["lanes"].busy]}
    yield Table(
        "Lanes without a job while jobs can join", "fraction", shares, {}, [Comparison("lanes", None, 0.05, "value")]
    )
