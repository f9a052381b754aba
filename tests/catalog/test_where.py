"""Conditions on runs."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.catalog import Where
from trainyard.errors import ConfigError


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("val/accuracy>0.8", True),
        ("val/accuracy>=.9 and optim.lr<1e-2", True),
        ("val/accuracy<0.8 or model=mlp", True),
        ("not model=mlp", False),
        ("not (val/accuracy<0.8 or seed!=0)", True),
        ("model in [cnn, mlp]", True),
        ("model not in [cnn, mlp]", False),
        ("state=finished", True),
        ("name='one'", True),
        ("epoch==3", True),
        ("seed=0", True),
        ("test/accuracy>0", False),  # it has none
        ("model>3", False),  # a text and a number
        ("schedule=null", True),
        ("optim.lr=-0.001", False),
    ],
)
def test_a_condition_holds(make_run: Any, condition: str, holds: bool) -> None:
    assert Where(condition)(make_run(schedule=None)) is holds


@pytest.mark.parametrize(
    "condition",
    [
        *(
            "",
            "val/accuracy>",
            "val/accuracy",
            "1<2",
            "a=b=c",
            "a<1<2",
            "__import__('os')",
            "a=(b)(c)",
            "a;b",
            "a in b",
        ),
        *("a=[1]", "a=1 and", "f(x)=1", "a='x", "a=lambda: 0"),
    ],
)
def test_what_is_no_condition_is_refused(condition: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        Where(condition)


@pytest.mark.parametrize(("condition", "hinted"), [("val/accuracy", True), ("val/accuracy>", False), ("a=[1]", False)])
def test_a_condition_without_a_comparison_may_have_lost_it_to_the_shell(condition: str, hinted: bool) -> None:
    with pytest.raises(ConfigError) as error:
        Where(condition)
    assert ("Enclose the condition in quotes" in str(error.value)) is hinted


@given(st.text(alphabet="ab/.=<>!()[], '\"0and not or in-_", max_size=20))
def test_any_text_is_a_condition_or_is_refused(text: str) -> None:
    with suppress(ConfigError):
        assert str(Where(text)) == text


def test_a_name_that_no_run_has_is_refused_with_the_nearest(make_run: Any) -> None:
    where = Where("val/acuracy>0.5")
    with pytest.raises(ConfigError, match="Did you mean 'val/accuracy'"):
        where.check([make_run()])
    where.check([])


def test_a_name_that_some_runs_have_is_accepted(make_run: Any) -> None:
    runs = [make_run("a"), make_run("b", momentum=0.9)]
    where = Where("momentum=0.9")
    where.check(runs)
    assert [run.info.name for run in runs if where(run)] == ["b"]
