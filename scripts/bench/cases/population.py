"""Population-based training: 16 members in the lanes of stacks, compared with Ray Tune for equal numbers of steps.

The members are MLPs 64-64-64-10 on the digits data, trained for 10 epochs of 20 steps with Adam, without tracking.
After each epoch, both sides validate and save each member, and the worst quarter continues from copies of the best
members with another learning rate and weight decay. Ray's members are parallel processes, in `.venv-ray`
(`scripts/test_ray.sh`); a copied member gets a new process. Trainyard has one process per core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from environment import ROOT
from measure import Comparison, Session, Table, take_turns_here

BY_RAY = Path(__file__).resolve().parents[1] / "population_by_ray.py"
RAY = Path(os.environ.get("TRAINYARD_BENCH_RAY", ROOT / ".venv-ray/bin/python"))


@dataclass
class Population:
    """Population of one side."""

    members: int
    epochs: int
    by_ray: bool

    def __call__(self) -> float:
        """Train it in a folder of its own, and return the seconds from the command's start to its end."""
        with tempfile.TemporaryDirectory(prefix="trainyard-population-") as folder:
            begin = perf_counter()
            environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
            done = subprocess.run(
                self.command(folder), cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            wall = perf_counter() - begin
        if done.returncode:
            raise RuntimeError(f"status {done.returncode}: {' '.join(done.stderr.split())[-200:]}")
        return wall

    def command(self, folder: str) -> list[str]:
        """Return the command line."""
        if self.by_ray:
            return [str(RAY), str(BY_RAY), str(self.members), str(self.epochs), f"{folder}/ray"]
        search = ["hydra/sweeper=pbt", f"hydra.sweeper.population={self.members}", "hydra.sweeper.interval=1"]
        work = ["model=mlp", "model.hidden=[64,64]", "optim=adam", f"loop.max_epochs={self.epochs}", "tracker=none"]
        space = ["optim.lr=tag(log,interval(1e-4,1e-1))", "optim.weight_decay=interval(0,0.1)"]
        stacks = [f"hydra.launcher.fuse={max(2, self.members // len(os.sched_getaffinity(0)))}"]
        return [sys.executable, str(ROOT / "train.py"), "-m", *search, *work, *space, *stacks, "hydra.sweep.dir=sweep"]


def tables(session: Session) -> Iterator[Table]:
    members, epochs = session.size(16, 4), session.size(10, 2)
    sides = {"trainyard": Population(members, epochs, False), "Ray Tune": Population(members, epochs, True)}
    values, failed = take_turns_here(session.once(), sides, warm=False)
    comparisons = [Comparison("trainyard", "Ray Tune", 0.2)]
    yield Table(f"A population of {members}, {epochs} epochs", "s", values, failed, comparisons)
