"""Values against the annotations of the target's arguments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Union

import pytest
import torch
from torch import Tensor

import trainyard.schedules
from trainyard.config.annotations import annotation, fits, in_words
from trainyard.config.build import build, check_tree
from trainyard.errors import ConfigError

Mode = Literal["min", "max"]
Count = NewType("Count", int)


class Net:
    """A class as users write them."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        width: int = 8,
        rate: float = 0.1,
        norm: bool = False,
        name: str = "",
        mode: Mode | None = None,
        sizes: Sequence[int] = (),
        pair: tuple[float, float] = (0.0, 1.0),
        one: tuple[str] = ("",),
        many: tuple[int, ...] = (),
        either: int | list[int] = 1,
        loose: "Nowhere" = None,  # type: ignore[name-defined] # noqa: F821
        plain: Any = None,
        bias=True,
        implicit: int = None,  # type: ignore[assignment] # noqa: RUF013
        text: "int" = 0,
    ) -> None:
        self.norm = norm


@dataclass
class Settings:
    """A class whose constructor is made for it."""

    keep: bool = True
    by: Literal["epoch", "iter"] = "epoch"


def function(flag: bool, *rest: int, **more: int) -> Any:
    """A function with arguments that have no names."""
    return flag


def refusal(target: Any, **values: Any) -> str | None:
    try:
        check_tree({"part": {"_target_": target, **values}})
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        ({"norm": "no"}, "true or false. Did you mean false?"),
        ({"norm": "off"}, "true or false. Did you mean false?"),
        ({"norm": "Yes"}, "true or false. Did you mean true?"),
        ({"norm": "maybe"}, "true or false."),
        ({"norm": 1}, "true or false."),
        ({"norm": None}, "true or false."),
        ({"width": True}, "an integer."),
        ({"width": 8.0}, "an integer."),
        ({"width": "8"}, "an integer."),
        ({"width": [8]}, "an integer."),
        ({"rate": True}, "a number."),
        ({"rate": "fast"}, "a number."),
        ({"rate": {"a": 1}}, "a number."),
        ({"name": 3}, "a string."),
        ({"mode": "mn"}, "one of min, max, or null. Did you mean 'min'?"),
        ({"sizes": 8}, "a list of integers."),
        ({"sizes": "88"}, "a list of integers."),
        ({"sizes": [8, 8.5]}, "a list of integers."),
        ({"pair": [1]}, "a list of 2 numbers."),
        ({"pair": [1, "x"]}, "a list of 2 numbers."),
        ({"one": ["a", "b"]}, "a list of 1 string."),
        ({"many": [1, True]}, "a list of integers."),
        ({"either": "x"}, "an integer, or a list of integers."),
        ({"text": "x"}, "an integer."),
        ({"bias": "no"}, "true or false. Did you mean false?"),
    ],
)
def test_a_value_of_another_kind_is_refused(values: dict[str, Any], accepted: str) -> None:
    ((name, given),) = values.items()
    found = refusal(Net, **values)
    assert found is not None
    assert found.startswith(f"part.{name}: {given!r} is invalid. Expected {accepted}")
    with pytest.raises(ConfigError, match=f"part.{name}"):
        build({"_target_": Net, **values}, "part")


@pytest.mark.parametrize(
    "values",
    [
        {"width": 3, "rate": 1, "norm": True, "name": "", "mode": "max"},
        {"mode": None, "sizes": [], "pair": (1, 2.5), "many": [1, 2, 3]},
        {"sizes": (1, 2), "either": [1], "implicit": None},
        {"loose": "anything", "plain": "no", "bias": 3},
        {"bias": "reflect"},
        {"norm": {"_target_": "builtins.bool"}},
        {"width": torch.tensor(3), "norm": torch.tensor(True)},
    ],
)
def test_what_fits_or_cannot_be_judged_passes(values: dict[str, Any]) -> None:
    assert refusal(Net, **values) is None


def test_the_constructor_of_a_dataclass_and_a_function() -> None:
    assert refusal(Settings, keep=False, by="iter") is None
    assert "part.keep: 'off' is invalid. Expected true or false." in str(refusal(Settings, keep="off"))
    assert "one of epoch, iter" in str(refusal(Settings, by="epochs"))
    assert refusal(function, flag=True, other="x") is None
    assert "part.flag: 'x' is invalid" in str(refusal(function, flag="x"))


def test_an_interpolation_and_auto_are_not_known_yet() -> None:
    assert refusal(Net, norm="${other}", width="???") is None
    check_tree({"_target_": Net, "width": "auto"}, "model.net")
    with pytest.raises(ConfigError, match=r"hook.a.width: 'auto' is invalid. Expected an integer\."):
        check_tree({"_target_": Net, "width": "auto"}, "hook.a")


def test_shares_of_a_schedule() -> None:
    step = {"_target_": torch.optim.lr_scheduler.StepLR, "_partial_": True}
    check_tree({**step, "step_size": 0.25}, "schedule.scheduler")
    check_tree({**step, "step_size": "auto"}, "schedule.scheduler")
    length = r'an integer, a fraction of the run in \(0, 1\), or "auto"'
    with pytest.raises(ConfigError, match=rf"^schedule\.scheduler\.step_size: 'x' is invalid. Expected {length}\.$"):
        check_tree({**step, "step_size": "x"}, "schedule.scheduler")
    with pytest.raises(ConfigError, match=r"^hook.a.step_size: 0.25 is invalid. Expected an integer\.$"):
        check_tree({**step, "step_size": 0.25}, "hook.a")
    drops = {"_target_": torch.optim.lr_scheduler.MultiStepLR, "_partial_": True}
    check_tree({**drops, "milestones": [1, 0.5]}, "schedule.scheduler")
    cycle = {"_target_": torch.optim.lr_scheduler.OneCycleLR, "_partial_": True, "max_lr": 0.1}
    with pytest.raises(ConfigError, match=rf"total_steps: 'x' is invalid. Expected {length}, or null\.$"):
        check_tree({**cycle, "total_steps": "x"}, "schedule.scheduler")
    restarts = {"_target_": torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, "_partial_": True, "T_0": 0.5}
    with pytest.raises(ConfigError, match=r"T_mult: 1.5 is invalid. Expected an integer\.$"):
        check_tree({**restarts, "T_mult": 1.5}, "schedule.scheduler")
    floor = {"_target_": trainyard.schedules.CosineAnnealingLR, "_partial_": True}
    check_tree({**floor, "T_max": 0.5}, "schedule.scheduler")


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        ({"fused": "maybe"}, "true or false, or null"),
        ({"lr": "abc"}, "a number"),
        ({"betas": [0.9]}, "a list of 2 numbers"),
    ],
)
def test_optimizers_of_torch(values: dict[str, Any], accepted: str) -> None:
    found = refusal(torch.optim.Adam, _partial_=True, **values)
    assert f"Expected {accepted}." in str(found)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (Optional[int], [None, 1], ["x", 1.5]),  # noqa: UP045
        (Union[bool, str], [True, "x"], [1, None]),  # noqa: UP007
        (Union[float, Tensor], [1, 0.5], ["x", None, True]),  # noqa: UP007
        (Mapping[str, bool], [{}, {"a": True}], [{"a": "no"}, [1], "x"]),
        (dict, [{"a": 1}], [[1], "x"]),
        (list, [[1]], ["x", {"a": 1}]),
        (Iterable[str], [["a"]], ["a", [1]]),
        (list[list[int]], [[[1], []]], [[1], [["x"]]]),
        (Literal[1, "a"], [1, "a"], [True, 2, "b"]),
        (Annotated[int, "positive"], [1, "x"], []),  # get_type_hints drops the annotation's extras before
        (Count, [1, "x"], []),
        (Path, ["x", 1], []),
        (Callable[..., Any], ["x", 1], []),
        (object, ["x", 1, None], []),
        (int | Callable[..., int], [1, "x"], []),
        (None, [None], [0, "null"]),
        (float, [1, float("nan"), float("inf")], [True, "inf"]),
    ],
)
def test_annotations(hint: Any, good: Sequence[Any], bad: Sequence[Any]) -> None:
    for value in good:
        assert fits(value, hint), value
    for value in bad:
        assert not fits(value, hint), value
        assert in_words(hint)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Mapping[str, str], "a mapping whose values are strings"),
        (Mapping[int, str | Sequence[str]], "a mapping whose values are strings or lists of strings"),
        (Mapping[str, Any], "a mapping"),
        (dict, "a mapping"),
    ],
)
def test_the_values_of_a_mapping_in_words(hint: Any, words: str) -> None:
    assert in_words(hint) == words


def extras(size: Annotated[int, "positive"]) -> None:
    """A function with more than a type in its annotation."""


def test_an_annotation_with_extras_is_its_type() -> None:
    assert annotation(extras, "size") is int


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Callable[[int], str], "a function"),
        (Callable[..., str] | None, "a function, or null"),
        (int | torch.optim.Optimizer, "an integer, or an object of class Optimizer"),
        (list[Callable[[int], str]], "a list of values"),
        (list[str] | None, "a list of strings, or null"),
        (Tensor, "a tensor, built by a config with `_target_`"),
        (Tensor | None, "a tensor, built by a config with `_target_`, or null"),
        (float | Tensor | None, "a number, or null"),
        (list[Tensor], "a list of tensors"),
        (list[float | Tensor], "a list of numbers"),
    ],
)
def test_annotations_in_words(hint: Any, words: str) -> None:
    assert in_words(hint) == words
