"""When a training validates, which checkpoints it keeps, and when it ends."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import ours, theirs

from trainyard.hooks import Checkpoint, EarlyStopping

pytest.importorskip("mmengine", reason="MMEngine is not installed: bash scripts/test_openmmlab.sh")
from mmengine.hooks import EarlyStoppingHook

_runs = count()


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A directory for each of a pair of runs."""
    number = next(_runs)
    return tmp_path / f"{number}a", tmp_path / f"{number}b"


INTERVALS = st.lists(st.tuples(st.integers(2, 9), st.integers(1, 4)), max_size=3, unique_by=lambda pair: pair[0])


@settings(max_examples=25)
@given(
    by_epoch=st.booleans(),
    length=st.integers(1, 9),
    begin=st.integers(1, 9),
    interval=st.integers(1, 4),
    dynamic=INTERVALS.map(sorted),
)
def test_validation_times(
    by_epoch: bool, length: int, begin: int, interval: int, dynamic: list[tuple[int, int]], tmp_path: Path
) -> None:
    """A milestone holds there from the end of the epoch before it on, here from its own."""
    begin = min(begin, length)
    one, other = folders(tmp_path)
    limits = {"val_begin": begin, "val_interval": interval}
    expected = theirs(
        one, length=length, by_epoch=by_epoch, batches=1, train_cfg=limits | {"dynamic_intervals": dynamic or None}
    )
    later = [(milestone - 1, every) for milestone, every in dynamic]
    found = ours(other, length=length, by_epoch=by_epoch, batches=1, loop=limits | {"dynamic_intervals": later})
    assert found.validated == expected.validated


def test_validation_that_would_begin_after_the_end(tmp_path: Path) -> None:
    """Here the end of a run is always validated: there is no best checkpoint without."""
    one, other = folders(tmp_path)
    assert theirs(one, length=3, train_cfg={"val_begin": 4}).validated == []
    assert ours(other, length=3, loop={"val_begin": 4}).validated == [3]


@settings(max_examples=25)
@given(
    by_epoch=st.booleans(),
    length=st.integers(2, 9),
    interval=st.integers(1, 4),
    begin=st.integers(0, 6),
    keep=st.sampled_from([None, 1, 2, 3]),
    last=st.booleans(),
    score=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=9, max_size=9),
    rule=st.sampled_from([None, "greater", "less"]),
)
def test_checkpoints_kept(
    by_epoch: bool,
    length: int,
    interval: int,
    begin: int,
    keep: int | None,
    last: bool,
    score: list[float],
    rule: str | None,
    tmp_path: Path,
) -> None:
    """A best one is there written under the name of a regular one too, here under its own alone."""
    one, other = folders(tmp_path)
    arguments: Any = {"length": length, "by_epoch": by_epoch, "batches": 1, "score": score}
    numbers = {"interval": interval, "save_begin": begin, "max_keep_ckpts": keep or -1, "save_last": last}
    best = {} if rule is None else {"save_best": "score", "rule": rule}
    expected = theirs(one, checkpoint=numbers | best, train_cfg={"val_interval": 1}, **arguments)
    hook = Checkpoint(interval, begin=begin, max_keep=keep, save_last=last, save_best=rule is not None)
    direction = "minimize" if rule == "less" else "maximize"
    found = ours(other, hooks={"checkpoint": hook}, direction=direction, loop={"val_interval": 1}, **arguments)
    assert found.best == expected.best
    if rule is None:
        assert found.files == expected.files


@pytest.mark.parametrize(("interval", "begin"), [(4, 0), (5, 2)])
def test_checkpoints_by_iteration_in_a_loop_of_epochs(interval: int, begin: int, tmp_path: Path) -> None:
    one, other = folders(tmp_path)
    expected = theirs(
        one, length=4, checkpoint={"interval": interval, "save_begin": begin, "by_epoch": False, "save_last": False}
    )
    hook = Checkpoint(interval, begin=begin, by="iter", max_keep=None, save_last=False, save_best=False)
    assert ours(other, length=4, hooks={"checkpoint": hook}).files == expected.files


def ends(values: list[float], rule: str, tmp_path: Path, by_epoch: bool = True, **limits: Any) -> tuple[int, int]:
    """Return after how many validations each of the two ends; `min_delta` is given to both."""
    one, other = folders(tmp_path)
    arguments: Any = {"length": len(values), "by_epoch": by_epoch, "batches": 1, "score": values}
    stop = EarlyStoppingHook("score", rule, **limits)
    expected = theirs(one, hooks=[stop], train_cfg={"val_interval": 1}, **arguments)
    own = EarlyStopping("val/score", {"greater": "maximize", "less": "minimize"}[rule], **limits)
    found = ours(other, hooks={"early_stop": own}, loop={"val_interval": 1}, **arguments)
    return len(found.validated), len(expected.validated)


@settings(max_examples=25)
@given(
    values=st.lists(st.floats(0, 1), min_size=3, max_size=9, unique=True),
    rule=st.sampled_from(["greater", "less"]),
    delta=st.sampled_from([0.0, 0.1, 0.3]),
    patience=st.integers(1, 4),
    threshold=st.sampled_from([None, 0.4321]),
    by_epoch=st.booleans(),
)
def test_early_stopping(
    values: list[float],
    rule: str,
    delta: float,
    patience: int,
    threshold: float | None,
    by_epoch: bool,
    tmp_path: Path,
) -> None:
    limits: Any = {"min_delta": delta, "patience": patience, "stopping_threshold": threshold}
    found, expected = ends(values, rule, tmp_path, by_epoch, **limits)
    assert found == expected


@pytest.mark.parametrize(
    ("values", "limits", "here", "there"),
    [
        ([0.5, 0.5, 0.5, 0.5], {}, 3, 4),  # a tie counts as better there
        ([0.5, 0.6, 0.1, 0.1], {"stopping_threshold": 0.6}, 2, 4),  # there the threshold has to be passed
        ([0.5, math.nan, 0.4, 0.3], {"check_finite": False}, 3, 4),  # NaN is the best there, and nothing beats it
        ([0.5, math.nan, 0.6, 0.7], {"check_finite": True}, 2, 2),  # here the run has failed
    ],
)
def test_early_stopping_where_it_differs(
    values: list[float], limits: dict[str, Any], here: int, there: int, tmp_path: Path
) -> None:
    assert ends(values, "greater", tmp_path, **{"min_delta": 0.0, "patience": 2} | limits) == (here, there)
