"""`hydra.launcher.debug=true` runs one job where a debugger can stop it."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from trainyard.runner.hook import Hook

SEEN: list[tuple[int, int]] = []


class Process(Hook):
    def before_train(self, runner: Any) -> None:
        SEEN.append((os.getpid(), runner.seed))


class Broken(Hook):
    def before_train(self, runner: Any) -> None:
        raise ArithmeticError("broken")


def test_the_first_job_runs_in_this_process(command: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "debugged_hooks", sys.modules[__name__])
    SEEN.clear()
    sweep = ("-m", "seed=3,4", "hydra.sweep.dir=sweep", "hydra.launcher.debug=true")
    status, said = command("+hook.seen._target_=debugged_hooks.Process", *sweep[1:], quick=_quick("-m"))
    assert status == 0, said
    assert [(os.getpid(), 3)] == SEEN
    assert sorted(path.name for path in Path("sweep").iterdir() if path.is_dir()) == ["0"]
    status, said = command(
        "+hook.broken._target_=debugged_hooks.Broken", *sweep[1:], "hydra.sweep.dir=other", quick=_quick("-m")
    )
    assert status == 1
    assert "ArithmeticError: broken" in said


@pytest.mark.parametrize(
    "launcher",
    [
        ("slurm", "hydra.launcher.partition=gpu", "hydra.launcher.detach=true"),
        ("ray", "hydra.launcher.num_gpus=1"),
    ],
)
def test_settings_of_the_launcher_are_accepted(command: Any, launcher: tuple[str, ...]) -> None:
    """The job runs in this process, without a cluster."""
    name, *own = launcher
    sweep = ["seed=3,4", "hydra.sweep.dir=sweep", "hydra.launcher.debug=true", f"hydra/launcher={name}"]
    status, said = command(*sweep, *own, quick=_quick("-m"))
    assert status == 0, said
    assert sorted(path.name for path in Path("sweep").iterdir() if path.is_dir()) == ["0"]
    status, said = command(*sweep, *own, "hydra.launcher.max_slots=0", quick=_quick("-m"))
    assert status == 2
    assert "hydra.launcher.max_slots: 0 is invalid." in said


@pytest.mark.parametrize("sweeper", ["grid", "basic"])
def test_only_the_first_job_of_several_batches_runs(command: Any, monkeypatch: Any, sweeper: str) -> None:
    monkeypatch.setitem(sys.modules, "debugged_hooks", sys.modules[__name__])
    SEEN.clear()
    status, said = command(
        "+hook.seen._target_=debugged_hooks.Process", "seed=3,4,5", "hydra.sweep.dir=sweep",
        "hydra.launcher.debug=true", f"hydra/sweeper={sweeper}", "hydra.sweeper.max_batch_size=1", quick=_quick("-m"),
    )  # fmt: skip
    assert status == 0, said
    assert [(os.getpid(), 3)] == SEEN
    assert sorted(path.name for path in Path("sweep").iterdir() if path.is_dir()) == ["0"]


def test_sweeps_without_a_list_of_jobs_refuse_it(command: Any) -> None:
    for sweeper, values in (
        ("hydra/sweeper/pruner=asha", "1e-3,1e-2"),
        ("hydra/sweeper=search", "interval(1e-3,1e-2)"),
        ("hydra/sweeper=pbt", "interval(1e-3,1e-2)"),
    ):
        chosen = (sweeper, f"optim.lr={values}", "loop.max_epochs=20", "hydra.launcher.debug=true")
        status, said = command(*chosen, quick=_quick("-m"))
        assert status == 2, said
        assert "hydra.launcher.debug: True is invalid. Expected false for a search, pbt or a pruner." in said
        assert not list(Path("multirun").glob("*/*/*/*.pt"))


def _quick(*flags: str) -> list[str]:
    return [*flags, "data=rings", "data.num_samples=300", "loop.max_epochs=1", "model.hidden=[8]", "tracker=none"]
