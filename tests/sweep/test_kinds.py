"""Which configs belong together, and what is said of those that do not."""

import copy
import math
from functools import partial
from typing import Any

import pytest
from calls import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.sweep import kinds as grouping

ALLOWED = ("seed", "optim", "hook.ema.decay")
ELSEWHERE = ("work_dir", "name")

plain = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, 1.0, 0.5, math.nan]), st.sampled_from("ab1")
)
nests = st.recursive(
    plain,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(st.sampled_from("abx"), below, max_size=3)),
    max_leaves=6,
)
configs = st.fixed_dictionaries(
    {"seed": plain, "model": nests, "optim": nests},
    optional={"work_dir": plain, "hook": st.one_of(plain, st.dictionaries(st.sampled_from(["ema", "x"]), nests))},
)


def _is_number(value: Any) -> Any:
    return type(value) in (int, float)


def _together(a: Any, b: Any, free: bool = False) -> Any:
    """Whether two values may stand at one place in one group, told another way than in the code."""
    if free and _is_number(a) and _is_number(b):
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(_together(a[key], b[key], free) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(_together(x, y, free) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def _together_at(a: Any, b: Any, path: str = "") -> Any:
    if path in ALLOWED:
        return _together(a, b, free=True)
    if isinstance(a, dict) and isinstance(b, dict) and (path == "" or any(p.startswith(f"{path}.") for p in ALLOWED)):
        below = [[key for key in each if f"{path}.{key}".lstrip(".") not in ELSEWHERE] for each in (a, b)]
        return below[0] == below[1] and all(_together_at(a[k], b[k], f"{path}.{k}".lstrip(".")) for k in below[0])
    return _together(a, b)


@settings(max_examples=150)
@given(st.lists(configs, max_size=6))
def test_together_are_those_that_differ_in_allowed_numbers_only(points: Any) -> None:
    kinds = grouping.kinds(points, ALLOWED, ELSEWHERE)
    assert sorted(index for kind in kinds for index in kind.members) == list(range(len(points)))
    kind_of = {index: number for number, kind in enumerate(kinds) for index in kind.members}
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            assert (kind_of[i] == kind_of[j]) == _together_at(a, b), (a, b)
    for kind in kinds:
        assert kind.members == sorted(kind.members)
    reasons = grouping.reasons(kinds, range(len(points)), [{}] * len(points))
    alone = {kind.members[0] for kind in kinds if len(kind.members) == 1}
    assert set(reasons) == (alone if len(kinds) > 1 else set())
    assert all(text.startswith(("the only job with ", "differs from #")) for text in reasons.values())


@settings(max_examples=50)
@given(configs, st.data())
def test_numbers_at_the_allowed_places_do_not_part(config: Any, data: st.DataObject) -> None:
    number = st.one_of(st.integers(), st.floats(allow_nan=True))

    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: other(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [other(entry) for entry in value]
        return data.draw(number) if _is_number(value) else value

    changed = copy.deepcopy(config) | {"optim": other(config["optim"]), "seed": other(config["seed"])}
    assert len(grouping.kinds([config, changed], ALLOWED, ELSEWHERE)) == 1


def test_the_configs_are_left_as_they_were() -> None:
    config = {"seed": 1, "optim": {"lr": [0.1, {"a": 2}]}, "hook": {"ema": {"decay": 0.9}}}
    before = copy.deepcopy(config)
    grouping.kinds([config], ALLOWED, ELSEWHERE)
    assert config == before


def _reasons(points: Any, choices: Any = None) -> Any:
    kinds = grouping.kinds(points, ALLOWED, ELSEWHERE)
    return grouping.reasons(kinds, range(len(points)), choices or [{}] * len(points))


def _point(**values: Any) -> Any:
    base = {"seed": 0, "loop": {"max_epochs": 10}, "model": {"_target_": "MLP", "hidden": [8], "p": 0.1}, "optim": {}}
    return base | values


def test_reasons() -> None:
    mlp, long = _point(), _point(loop={"max_epochs": 30})
    assert _reasons([mlp, mlp, long]) == {2: "the only job with loop.max_epochs=30"}
    cnn = _point(model={"_target_": "CNN", "channels": [4], "q": 1, "p": 0.1})
    assert _reasons([mlp, mlp, cnn]) == {
        2: "the only job with model._target_=CNN, model.hidden=absent, model.channels=[4] and 1 more"
    }
    chosen = [{"model": "mlp"}, {"model": "mlp"}, {"model": "cnn", "seed": "3"}]
    assert _reasons([mlp, mlp, cnn], chosen) == {2: "the only job with model=cnn"}
    corner = _point(loop={"max_epochs": 30}, clip=1)
    reasons = _reasons([_point(clip=1), _point(clip=1), _point(clip=2, loop={"max_epochs": 30}), corner])
    assert reasons == {2: "the only job with clip=2", 3: "differs from #0 in loop.max_epochs"}
    assert _reasons([mlp]) == {}, "there is nothing to be compared with"
    turned = {"optim": {}, **{key: value for key, value in mlp.items() if key != "optim"}}
    assert _reasons([mlp, mlp, turned]) == {2: "differs from #0 in the order of its keys"}


def test_the_default_of_another_jobs_choice() -> None:
    reasons = _reasons([_point(), _point(loop={"max_epochs": 3})], [{}, {"loop.max_epochs": "3"}])
    assert reasons == {0: "the only job with loop.max_epochs=10", 1: "the only job with loop.max_epochs=3"}


@pytest.mark.parametrize("alike", [True, False])
def test_the_work_grows_with_the_jobs_and_no_faster(alike: bool) -> None:
    inside = {f"key{n}": {"a": n, "b": [1, 2, 3], "c": "text", "d": None} for n in range(30)}

    def work(count: Any) -> None:
        points = [
            _point(seed=n, optim={"lr": n / 7}, inside=inside, x=0 if alike else n // 3, y=n % 3) for n in range(count)
        ]
        kinds = grouping.kinds(points, ALLOWED, ELSEWHERE)
        grouping.reasons(kinds, range(len(points)), [{}] * len(points))
        assert len(kinds) == (3 if alike else count)

    work(3)  # loads numpy
    assert calls(partial(work, 999)) < 3.5 * calls(partial(work, 333))
