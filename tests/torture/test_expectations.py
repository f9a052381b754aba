"""The torture compares what a message says with what is accepted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def expectations(torture: Any) -> Any:
    import expectations  # the fixture puts its folder on the path

    return expectations


def _refused(accepted: str) -> tuple[int, str]:
    return 2, f"Training mlp\nhook.ema.decay: 'abc' is invalid. Expected {accepted}\n"


@pytest.mark.parametrize(
    ("accepted", "value"),
    [
        ("a number.", "null"),
        ("an integer, or null.", "true"),
        ("an integer, or null.", "1.5"),
        ("a number above 0.", "0"),
        ("a number of at least 0\nand below 1.", "-1"),
        ("a non-negative integer of at most 63 bits.", "-1"),
    ],
)
def test_an_accepted_value_that_a_message_excludes_is_found(expectations: Any, accepted: str, value: str) -> None:
    ends = {"''": _refused(accepted), value: (0, "")}
    (found,) = expectations.contradictions("hook.ema.decay", ends)
    assert found.startswith(f"hook.ema.decay={value} is accepted")


@pytest.mark.parametrize(
    ("accepted", "value"),
    [
        ("a number, or null.", "null"),
        ("true or false.", "true"),
        ("a number of at least 0.", "0"),
        ("a number below 2.", "1.5"),
    ],
)
def test_a_value_that_its_own_message_names_is_found(expectations: Any, accepted: str, value: str) -> None:
    (found,) = expectations.contradictions("hook.ema.decay", {value: _refused(accepted)})
    assert found.startswith(f"hook.ema.decay={value} is refused")


@pytest.mark.parametrize(
    ("accepted", "ends"),
    [
        ("a number above 0, or null.", {"null": 0, "-1": 2, "1.5": 0}),
        ("an integer of at least 1, or auto.", {"0": 2, "null": 2}),
        ("a function (`_partial_: true`).", {"true": 2}),
        ("null, because data.in_memory is true.", {"true": 2}),
        ("a fraction in [0, 1], or a number of samples.", {"1.5": 2, "0": 0}),
    ],
)
def test_a_message_that_agrees_is_not_found(expectations: Any, accepted: str, ends: dict[str, int]) -> None:
    results = {value: (0, "") if status == 0 else _refused(accepted) for value, status in ends.items()}
    assert expectations.contradictions("hook.ema.decay", {"''": _refused(accepted), **results}) == []


@given(st.integers(-3, 3), st.sampled_from(["at least", "above", "at most", "below"]))
def test_a_bound_is_compared_with_each_number(expectations: Any, bound: int, words: str) -> None:
    inside = {
        "at least": lambda n: n >= bound,
        "above": lambda n: n > bound,
        "at most": lambda n: n <= bound,
        "below": lambda n: n < bound,
    }[words]
    for value, number in expectations.NUMBERS.items():
        message = _refused(f"a number {words} {bound}.")
        accepted = expectations.contradictions("hook.ema.decay", {"abc": message, value: (0, "")})
        refused = expectations.contradictions("hook.ema.decay", {value: message})
        assert bool(accepted) == (not inside(number))
        assert bool(refused) == inside(number)
