import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard import temporary
from trainyard.errors import ConfigError
from trainyard.runner import Member, Objective, Runner, read
from trainyard.track import read as read_journal

numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(numbers, min_size=1), st.sampled_from(["maximize", "minimize"]))
def test_the_best_of_a_sequence_is_its_extreme(values: Any, direction: str) -> None:
    objective, best = Objective("val/x", direction), None
    for value in values:
        if objective.better(value, best):
            best = value
    finite = [value for value in values if not math.isnan(value)]
    extreme = (max if direction == "maximize" else min)(finite, default=None)
    assert best == extreme


def test_better_by_a_margin() -> None:
    objective = Objective("val/accuracy", "maximize")
    assert objective.better(0.92, 0.9, by=0.01)
    assert not objective.better(0.905, 0.9, by=0.01)


def test_unknown_direction_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="maximize"):
        Objective("val/accuracy", "maximise")


def test_objective_that_nobody_computes_names_the_nearest() -> None:
    member = Member(0, None, Objective("val/acuracy", "maximize"))
    nobody: Any = SimpleNamespace(dispatch=SimpleNamespace(recorder=lambda name, names: None))
    member.join(nobody)
    member.record({"val/accuracy": 0.5, "train/loss": 1.0}, step=1, epoch=1)
    with pytest.raises(ConfigError, match="val/accuracy") as error:
        member.judge(step=1, epoch=1)
    assert "train/loss" not in str(error.value)


def test_state_survives_a_round_trip() -> None:
    member = Member(0, None, Objective("val/x", "minimize"))
    member.record({"val/x": 0.5}, step=7, epoch=2)
    member.judge(step=7, epoch=2)
    other = Member(0, None, Objective("val/x", "minimize"))
    other.load_state_dict(member.state_dict())
    assert other == member


@given(st.integers(1, 5), st.integers(1, 4))
def test_read_gives_each_member_its_own_numbers(members: int, names: int) -> None:
    values = {f"v{i}": torch.arange(members, dtype=torch.float32) + 10 * i for i in range(names)}
    rows = read(values, members)
    assert rows == [{f"v{i}": float(m + 10 * i) for i in range(names)} for m in range(members)]


def test_read_takes_scalars_of_a_solo_run() -> None:
    assert read({"a": torch.tensor(2), "b": torch.tensor([3.5])}, 1) == [{"a": 2.0, "b": 3.5}]
    assert read({}, 2) == [{}, {}]


def test_a_start_removes_what_a_killed_process_was_writing(parts: Any, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".epoch_0001.tmp").mkdir(parents=True)
    left = [tmp_path / ".predictions.parquet.tmp", tmp_path / "checkpoints" / ".best.pt.tmp"]
    for path in left:
        path.touch()
    (tmp_path / "notes.tmp").touch()
    host, pid, start = temporary.marked("").split("-")
    (tmp_path / f".run.json.{host}-{pid}-{int(start) + 1}").touch()
    with Runner(**{**parts, "work_dir": tmp_path}).session():
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
        assert not list((tmp_path / "checkpoints").iterdir())
        assert (tmp_path / "notes.tmp").exists()


def test_the_best_is_recorded_once_where_it_was_reached(parts: Any, tmp_path: Path) -> None:
    runner = Runner(**{**parts, "work_dir": tmp_path})
    for value, step in ((0.5, 10), (0.9, 20), (0.7, 30)):
        with runner.session():
            (member,) = runner.members
            member.record({member.objective.name: value}, step=step, epoch=step // 10)
            member.judge(step=step, epoch=step // 10)
    found = [record for record, _ in read_journal(tmp_path / "metrics.jsonl") if record["kind"] == "metrics"]
    best = f"best/{member.objective.name}"
    recorded = [(record["step"], record["values"]) for record in found if best in record["values"]]
    maximize = member.objective.direction == "maximize"
    expected = [(10, 0.5), (20, 0.9)] if maximize else [(10, 0.5)]
    assert recorded == [(at, {best: value, "best/epoch": at // 10, "best/step": at}) for at, value in expected]
