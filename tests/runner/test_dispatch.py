from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.config.schema import check
from trainyard.errors import ConfigError
from trainyard.hooks import Hook
from trainyard.runner.dispatch import PRIORITIES, STAGES, Dispatch, build_hook, build_hooks, priority


def _hook(name: Any, at: Any, calls: Any) -> Any:
    class Recorder(Hook):
        priority = at

        def before_train(self, runner: Any) -> None:
            calls.append(name)

    return Recorder()


@given(st.lists(st.one_of(st.sampled_from(sorted(PRIORITIES)), st.integers(0, 100)), max_size=8))
def test_hooks_are_called_by_priority_then_in_the_order_given(priorities: Any) -> None:
    calls: list[Any] = []
    hooks = {f"h{i}": _hook(i, at, calls) for i, at in enumerate(priorities)}
    Dispatch(hooks).call("before_train", None)
    assert calls == sorted(range(len(priorities)), key=lambda i: priority(priorities[i]))


def test_a_hook_is_called_only_at_the_stages_that_it_defines() -> None:
    dispatch = Dispatch({"one": _hook("one", "NORMAL", [])})
    assert [stage for stage in STAGES if dispatch.stage(stage)] == ["before_train"]


@pytest.mark.parametrize("value", ["HIHG", 101, -1, 2.5])
def test_unknown_priority(value: float | str) -> None:
    hook = _hook("x", value, [])
    with pytest.raises(ConfigError, match=r"hook\.mine\.priority"):
        Dispatch({"mine": hook})


def test_the_nearest_priority_is_named() -> None:
    with pytest.raises(ConfigError, match="'HIGH'"):
        priority("HIHG")


def test_a_stage_spelt_wrong_names_the_nearest() -> None:
    class Wrong(Hook):
        def after_train_iteration(self, runner: Any) -> None:
            """Never called."""

    with pytest.raises(ConfigError, match="after_train_iter'"):
        Dispatch({"wrong": Wrong()})


def test_state_goes_to_the_hook_of_that_name() -> None:
    class Counter(Hook):
        def __init__(self, count: Any) -> None:
            self.count = count

        def state_dict(self) -> Any:
            return {"count": self.count}

        def load_state_dict(self, state: Any) -> None:
            self.count = state["count"]

    states = Dispatch({"a": Counter(3), "b": Counter(5), "plain": Hook()}).state_dict()
    assert states == {"a": {"count": 3}, "b": {"count": 5}}
    hooks = {"b": Counter(0), "c": Counter(1)}
    Dispatch(hooks).load_state_dict(states)
    assert (hooks["b"].count, hooks["c"].count) == (5, 1)


def test_a_config_may_give_a_hook_another_priority() -> None:
    nodes = {
        "late": {"_target_": "trainyard.hooks.EmptyCache", "priority": "LOW"},
        "as_it_is": {"_target_": "trainyard.hooks.EmptyCache"},
        "number": {"_target_": "trainyard.hooks.EmptyCache", "after_iter": True, "priority": 7},
    }
    hooks = build_hooks(nodes)
    assert {name: hook.priority for name, hook in hooks.items()} == {"late": "LOW", "as_it_is": "NORMAL", "number": 7}
    order = [method.__self__ for method in Dispatch(hooks).stage("before_run")]  # type: ignore[attr-defined]
    assert order == [hooks["number"], hooks["as_it_is"], hooks["late"]]
    assert nodes["late"]["priority"] == "LOW", "the config stays as it is"


def test_a_priority_that_the_hook_takes_itself_is_its_own() -> None:
    hook = build_hook({"_target_": f"{__name__}.Ranked", "priority": "HIGH"}, "ranked")
    assert (hook.given, hook.priority) == ("HIGH", "NORMAL")


class Ranked(Hook):
    def __init__(self, priority: Any) -> None:
        self.given = priority


@pytest.mark.parametrize("value", ["HIHG", 101])
def test_an_unknown_priority_in_a_config_is_told_before_anything_is_built(value: int | str) -> None:
    config = OmegaConf.create({"hook": {"timer": {"_target_": "trainyard.hooks.IterTimer", "priority": value}}})
    with pytest.raises(ConfigError, match=rf"hook\.timer\.priority: {value!r} is invalid"):
        check(config)
    with pytest.raises(ConfigError, match=r"hook\.timer\.priority"):
        Dispatch(build_hooks(OmegaConf.to_container(config)["hook"]))  # type: ignore[call-overload]
