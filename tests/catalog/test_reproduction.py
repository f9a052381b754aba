"""Comparison of a run with its repetition."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard.catalog import Point
from trainyard.reproduction import _changed_files, _first_difference, check
from trainyard.runner import checkpoint

DIFF = """diff --git a/src/net.py b/src/net.py
--- a/src/net.py
+++ b/src/net.py
@@ -1 +1 @@
-x = 1
+x = {}
"""
numbers = st.floats(allow_nan=True)


def points(values: list[float]) -> list[Point]:
    return [Point(step, None, value) for step, value in enumerate(values)]


@given(st.lists(numbers), st.lists(numbers))
def test_curves_differ_if_and_only_if_a_number_does(one: list[float], other: list[float]) -> None:
    same = len(one) == len(other) and all(a == b or (a != a and b != b) for a, b in zip(one, other, strict=True))
    assert (_first_difference(points(one), points(other)) == "") is same


def test_the_first_difference_is_named(make_run: Any) -> None:
    then, now = make_run("then", (0.5, 0.9, 0.7)), make_run("now", (0.5, 0.8, 0.7))
    found = check(then, now)
    assert not found.identical
    assert found.curves["val/accuracy"] == "first at iteration 20 (epoch 2): 0.9 then, 0.8 now"
    assert "train/loss" not in found.curves
    assert check(then, then).identical


def test_a_run_that_did_not_end_is_compared_as_far_as_it_went(make_run: Any) -> None:
    then, now = make_run("then", (0.5, 0.9), status="KILLED"), make_run("now", (0.5, 0.9, 0.7))
    found = check(then, now)
    assert found.identical
    assert found.notes == [
        "the original run has not finished (state: interrupted), so only its completed part is compared"
    ]
    assert not check(now, then).identical, "a run that ended has all its values"


def test_of_a_run_that_did_not_end_only_checkpoints_of_the_same_iteration_are_compared(make_run: Any) -> None:
    then, now = make_run("then", (0.5,), status="KILLED"), make_run("now", (0.5, 0.9))

    def save(run: Any, name: str, step: int, weight: float) -> None:
        state = {"iter": step, "model": {"weight": torch.tensor([weight])}}
        checkpoint.save(run.directory / "checkpoints" / name, state)

    save(then, "best.pt", 10, 1.0)
    save(now, "best.pt", 20, 2.0)
    assert check(then, now).weights is None
    assert check(then, now).identical
    for run in (then, now):
        save(run, "epoch_1.pt", 10, 1.0)
    assert check(then, now).weights == []
    save(now, "epoch_1.pt", 10, 3.0)
    assert check(then, now).weights == ["epoch_1.pt: weight"]
    ended = make_run("ended", (0.5, 0.9))
    save(ended, "best.pt", 10, 1.0)
    assert check(ended, now).weights == ["best.pt: weight"], "a run that ended has its best checkpoint"


def test_a_damaged_checkpoint_is_named_and_does_not_end_the_comparison(make_run: Any) -> None:
    then, now = (
        make_run("then", checkpoints=["best.pt", "last.pt"]),
        make_run("now", checkpoints=["best.pt", "last.pt"]),
    )
    for run in (then, now):
        checkpoint.save(run.directory / "checkpoints" / "last.pt", {"model": {"weight": torch.ones(1)}})
    found = check(then, now).weights
    assert found is not None
    assert [name.partition(",")[0] for name in found] == ["best.pt: not compared"]


def test_times_and_loads_are_no_curves(make_run: Any) -> None:
    then, now = make_run("then"), make_run("now")
    for run in (then, now):
        run.history.series["train/time"] = points([hash(run.directory)])
        run.history.series["system/cpu_utilization_percentage"] = points([hash(run.directory)])
    assert check(then, now).identical


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"a": torch.tensor([1.0, math.nan])}, []),
        ({"a": torch.tensor([1.0, 2.0])}, ["best.pt: a"]),
        ({"a": torch.tensor([1.0, math.nan]).double()}, ["best.pt: a"]),
        ({"b": torch.tensor([1.0, math.nan])}, ["best.pt: a", "best.pt: b"]),
    ],
)
def test_weights_are_compared_bit_for_bit(make_run: Any, other: dict[str, Any], differs: list[str]) -> None:
    then, now = make_run("then"), make_run("now")
    checkpoint.save(then.directory / "checkpoints" / "best.pt", {"model": {"a": torch.tensor([1.0, math.nan])}})
    checkpoint.save(now.directory / "checkpoints" / "best.pt", {"model": other})
    assert check(then, now).weights == differs
    assert check(then, now).identical is (not differs)


def test_without_a_checkpoint_of_one_name_there_is_nothing_to_say(make_run: Any) -> None:
    assert check(make_run("then"), make_run("now")).weights is None


def test_what_differs_around_the_runs_is_said(make_run: Any) -> None:
    then, now = make_run("then"), make_run("now")
    now.info.facts["version.torch"] = "2.1"
    for run, digest, threads in ((then, "aa", 1), (now, "bb", 2)):
        with (run.directory / "metrics.jsonl").open("a") as file:
            digests = {"digits/train": digest, "digits/val": "same"}
            inputs = [{"name": name, "digest": each, "context": "train"} for name, each in digests.items()]
            file.write(json.dumps({"kind": "inputs", "time": 0.0, "inputs": inputs}) + "\n")
            file.write(json.dumps({"kind": "tags", "time": 0.0, "tags": {"threads": str(threads)}}) + "\n")
    found = check(then, now)
    assert found.identical, "that alone is no difference of the result"
    assert found.data == {"digits/train": ["aa", "bb"]}
    assert found.environment == {"version.torch": ["2.0", "2.1"], "threads": ["1", "2"]}


def test_files_whose_changes_differ_are_named(make_run: Any) -> None:
    then, now = make_run("then"), make_run("now")
    (then.directory / "git.diff").write_text(DIFF.format(2))
    assert _changed_files(then, now) == ["src/net.py"]
    (now.directory / "git.diff").write_text(DIFF.format(2))
    assert _changed_files(then, now) == []
    (now.directory / "git.diff").write_text(DIFF.format(3) + DIFF.format(1).replace("net", "own"))
    assert _changed_files(then, now) == ["src/net.py", "src/own.py"]
