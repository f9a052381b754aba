"""What is wrong about hooks, schedules and accumulation, as a user meets it: on the command line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MINE = """\
from trainyard.hooks import Hook

class Misspelt(Hook):
    def after_train_itr(self, runner, batch_idx, data_batch, outputs): ...

class Unranked(Hook):
    priority = "LOWW"

class Fine(Hook): ...
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the user's."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["+hook.w._target_=mine.Misspelt"],
            ["hook.w: 'after_train_itr' is invalid", "Did you mean 'after_train_iter'?"],
        ),
        (["+hook.w._target_=mine.Unranked"], ["hook.w.priority: 'LOWW' is invalid", "Did you mean 'LOW'?"]),
        (
            ["+hook.w._target_=mine.Fine", "+hook.w.priority=HIHG"],
            ["hook.w.priority: 'HIHG' is invalid", "Did you mean 'HIGH'?"],
        ),
        (
            ["hook.checkpoint.save_best={val/acuracy:maximize}"],
            ["hook.checkpoint.save_best: No metric named 'val/acuracy'", "Did you mean 'val/accuracy'?"],
        ),
        (
            ["hook=[default,early_stop]", "hook.early_stop.monitor=val/acuracy"],
            ["hook.early_stop.monitor: No metric named 'val/acuracy'", "Did you mean 'val/accuracy'?"],
        ),
        (["schedule=onecycle", "schedule.scheduler.total_steps=5"], ["schedule.scheduler.total_steps: 5 is invalid"]),
        (["schedule=warmup_cosine", "schedule.warmup=5000"], ["schedule.warmup: 5000 is invalid", "less than"]),
        (["schedule=cosine", "schedule.begin=10"], ["schedule.begin: 10 is invalid", "before the end of the run"]),
    ],
    ids=" ".join,
)
def test_a_mistake_is_told_and_leaves_nothing(command: Any, mine: Any, arguments: Any, told: Any) -> None:
    status, message = command(*arguments)
    assert status == 2, message
    assert len(message.strip().splitlines()) == 1, "one paragraph"
    for text in told:
        assert text in message
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["schedule=cosine", "schedule.scheduler.T_max=50"],
        ["schedule=cosine", "schedule.end=50"],
        ["schedule=multistep", "schedule.scheduler.milestones=[1,50]"],
        ["accumulate=3", "data.batch_size=32"],
        ["accumulate=1000"],
    ],
    ids=" ".join,
)
def test_longer_than_the_run_works(command: Any, arguments: Any) -> None:
    """Schedules, and groups of accumulated batches: the end of the run cuts them short."""
    assert command(*arguments, "hydra.run.dir=run") == (0, "")
    assert (Path.cwd() / "run/checkpoints/best.pt").exists()
