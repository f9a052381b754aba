"""Sides take turns in windows; they must reach the same loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def part(tmp_path: Path) -> Any:
    from part import Part
    from results import Results

    return Part("steps", Results(tmp_path / "results.json"), "cpu", True, tmp_path, float("inf"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that stands still unless a test advances it."""
    import timing

    class Clock:
        now = 0.0

    monkeypatch.setattr(timing, "perf_counter", lambda: Clock.now)
    return Clock


def plan(**more: Any) -> Any:
    from timing import Plan

    return Plan(**{"seconds": 2.0, "warm": 0.5, "rounds": 1, "compared": 3, **more})


def table(part: Any) -> Any:
    return part.results.read()["parts"]["steps"]["tables"]["mlp"]


def turns(part: Any, sides: Any, **more: Any) -> Any:
    from timing import take_turns

    take_turns(part, {"mlp": sides}, plan(**more), {"mlp": 1e-3})
    return table(part)


def losses(clock: Any, step: float, scale: float = 1.0) -> Iterator[Any]:
    """Steps of so many seconds, whose losses fall."""
    for number in count(1):
        clock.now += step
        yield torch.tensor(scale / number)


def test_the_window_begins_after_the_warm_up_and_the_compared_steps(clock: Any) -> None:
    from timing import Window

    calls: list[float] = []
    window = Window(plan(), lambda: calls.append(clock.now))
    steps = [window.step(loss) for loss in islice(losses(clock, 0.25), 11)]
    assert steps == [*[False] * 10, True]
    # 0.5 s have passed since the first step with the third, which is the last of those that are compared.
    assert calls == [0.75, 2.75]
    assert window.microseconds == 0.25e6
    assert window.loss == pytest.approx(1 / 3)


def test_compared_steps_that_take_longer_than_the_warm_up(clock: Any) -> None:
    from timing import Window

    calls: list[float] = []
    window = Window(plan(compared=5), lambda: calls.append(clock.now))
    assert any(window.step(loss) for loss in losses(clock, 1.0))
    assert calls == [5.0, 7.0]
    assert window.loss == pytest.approx(1 / 5)


def test_each_round_adds_a_window(part: Any, clock: Any) -> None:
    from timing import going_on

    rows = turns(
        part, {"a": going_on(lambda: losses(clock, 0.5)), "b": going_on(lambda: losses(clock, 1.0), 4)}, rounds=3
    )
    assert rows["a"]["values"] == [0.5e6] * 3
    assert rows["b"]["values"] == [0.25e6] * 3  # of four members
    assert rows["a"]["median"] == 0.5e6
    assert rows["a"]["loss"] == rows["b"]["loss"] == pytest.approx(1 / 3)  # of the first window, from the beginning
    assert rows["a"]["same"]
    assert rows["b"]["same"]
    assert not part.failures


def test_another_loss_is_a_failure(part: Any, clock: Any) -> None:
    from timing import going_on

    sides = {"a": going_on(lambda: losses(clock, 1.0)), "b": going_on(lambda: losses(clock, 1.0, scale=1.002))}
    rows = turns(part, sides)
    assert (rows["a"]["same"], rows["b"]["same"]) == (True, False)
    assert part.failures == ["mlp: b: the loss is 0.334, not 0.333333"]


def test_a_loss_that_is_not_a_number_is_a_failure(part: Any, clock: Any) -> None:
    from timing import going_on

    rows = turns(part, {"a": going_on(lambda: losses(clock, 1.0, scale=float("nan")))})
    assert not rows["a"]["same"]


def test_the_losses_of_two_calls_are_compared(part: Any, clock: Any) -> None:
    from timing import going_on

    turns(part, {"a": going_on(lambda: losses(clock, 1.0))})
    rows = turns(part, {"b": going_on(lambda: losses(clock, 1.0, scale=2.0))})
    assert not rows["b"]["same"]


def test_a_side_that_fails_does_not_stop_the_others(part: Any, clock: Any) -> None:
    from timing import Missing, going_on

    def twice() -> Iterator[Any]:
        for number, loss in enumerate(losses(clock, 1.0)):
            if number == 8:
                raise RuntimeError("out of\nmemory")
            yield loss

    sides = {"a": going_on(twice), "b": going_on(lambda: losses(clock, 1.0)), "c": Missing("needs CUDA")}
    rows = turns(part, sides, rounds=3)
    assert len(rows["b"]["values"]) == 3
    assert rows["a"]["failed"] == "RuntimeError: out of memory"
    assert rows["a"]["values"] == [1e6]  # of the first round
    assert rows["c"] == {"missing": "needs CUDA"}
    assert part.failures == ["mlp: a: RuntimeError: out of memory"]


def test_a_side_that_ends_too_soon_is_a_failure(part: Any, clock: Any) -> None:
    from timing import going_on

    rows = turns(part, {"a": going_on(lambda: iter([torch.zeros(())]))})
    assert "failed" in rows["a"]


def test_a_side_for_which_no_time_is_left(part: Any, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last windows are left out; a side that has none is a failure."""
    from timing import SPARE, going_on

    monkeypatch.setattr("part.time.monotonic", lambda: clock.now)
    # A window of "a" takes 5 s, as does that of "b"; then there is no time for a third one.
    part.until = 10.0 + 2.5 + SPARE
    sides = {"a": going_on(lambda: losses(clock, 1.0)), "b": going_on(lambda: losses(clock, 1.0))}
    rows = turns(part, sides, rounds=3)
    assert [len(rows[name]["values"]) for name in ("a", "b")] == [2, 1]
    assert not part.failures
    turns(part, {"late": going_on(lambda: losses(clock, 1.0))})
    assert part.failures == ["mlp: late: no time is left"]
