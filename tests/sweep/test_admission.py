"""Jobs that are proposed while others run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked import Forked
from waiting import LIMIT

from hydra_plugins.trainyard_launcher import LocalLauncher
from trainyard.sweep.clones import of_proposer
from trainyard.sweep.events import Began, Ended, Origin, Proposed, Queued, Started, Unit
from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).parents[2]
SWEEPER = """
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from trainyard.sweep.events import Proposed
from trainyard.sweep.proposers import NewJob, Proposer

class OneByOne(Proposer):
    def __init__(self, jobs):
        self.jobs, self.proposed = jobs, set()

    def ask(self, free):
        return [NewJob(job) for job in self.jobs if job not in self.proposed][:1]

    def told(self, event):
        if isinstance(event, Proposed):
            self.proposed.add(event.overrides)

class Trickle(Sweeper):
    def __init__(self, rates, **others):
        self.rates = list(rates)

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        self.launcher.run(OneByOne([(*arguments, f"optim.lr={rate}") for rate in self.rates]))
"""


def test_jobs_come_while_others_run_and_one_that_fails_gives_the_command_its_status(tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins/trickle").mkdir(parents=True)
    (tmp_path / "hydra_plugins/trickle/__init__.py").write_text(SWEEPER)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    env = clean | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1", "COLUMNS": "150"}
    rates = [0.1, 0.2, -1.0, 0.3]
    process = Forked(
        [
            sys.executable, str(ROOT / "train.py"), "-m", "data=rings", "data.num_samples=100", "loop.max_epochs=1",
            "model.hidden=[4]", "tracker=none", "hydra.sweep.dir=s", "hydra.launcher.max_jobs=2",
            "hydra.launcher.threads_per_job=1", "hydra.sweeper._target_=hydra_plugins.trickle.Trickle",
            f"+hydra.sweeper.rates={rates}",
        ],
        cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=LIMIT)
    entries = Manifest.open(tmp_path / "s").entries
    assert {num: entry.state for num, entry in entries.items()} == {0: "done", 1: "done", 2: "failed", 3: "done"}, out
    assert [entry.overrides[-1] for entry in entries.values()] == [f"optim.lr={rate}" for rate in rates]
    assert process.returncode == 1
    assert "1 of 4 jobs did not finish: #2." in " ".join(err.split())


def test_a_proposer_is_told_of_no_clones() -> None:
    clone = 1_000_000
    for event in (
        Proposed(clone, origin=Origin(0, 0)),
        Started(clone),
        Ended(clone, "done"),
        Queued((Unit((clone,)),)),
    ):
        assert of_proposer(event) is None
    assert of_proposer(Queued((Unit((0, 1)), Unit((clone,))), "again")) == Queued((Unit((0, 1)),), "again")
    for other in (Began(), Ended(0, "done")):
        assert of_proposer(other) is other


@pytest.mark.parametrize("error", [None, KeyError("ask")])
def test_a_sweeper_of_our_own_closes_its_sweep_whatever_happens(error: Any) -> None:
    called: list[str] = []

    def run(proposer: Any) -> None:
        if error is not None:
            raise error

    launcher = LocalLauncher()
    sweep: Any = SimpleNamespace(
        run=run, close=lambda: called.append("close"), raise_if_failed=lambda: called.append("status")
    )
    launcher.sweep = sweep
    if error is None:
        launcher.run(SimpleNamespace())
        assert called == ["close", "status"]
    else:
        with pytest.raises(KeyError):
            launcher.run(SimpleNamespace())
        assert called == ["close"]
