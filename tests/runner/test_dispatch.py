import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.hooks import Hook
from trainyard.runner.dispatch import PRIORITIES, STAGES, Dispatch, priority


def _hook(name, at, calls):
    class Recorder(Hook):
        priority = at

        def before_train(self, runner):
            calls.append(name)

    return Recorder()


@given(st.lists(st.one_of(st.sampled_from(sorted(PRIORITIES)), st.integers(0, 100)), max_size=8))
def test_hooks_are_called_by_priority_then_in_the_order_given(priorities):
    calls = []
    hooks = {f"h{i}": _hook(i, at, calls) for i, at in enumerate(priorities)}
    Dispatch(hooks).call("before_train", None)
    assert calls == sorted(range(len(priorities)), key=lambda i: priority(priorities[i]))


def test_a_hook_is_called_only_at_the_stages_that_it_defines():
    dispatch = Dispatch({"one": _hook("one", "NORMAL", [])})
    assert [stage for stage in STAGES if dispatch.stage(stage)] == ["before_train"]


@pytest.mark.parametrize("value", ["HIHG", 101, -1, 2.5])
def test_unknown_priority(value):
    hook = _hook("x", value, [])
    with pytest.raises(ConfigError, match=r"hook\.mine\.priority"):
        Dispatch({"mine": hook})


def test_the_nearest_priority_is_named():
    with pytest.raises(ConfigError, match="'HIGH'"):
        priority("HIHG")


def test_a_stage_spelt_wrong_names_the_nearest():
    class Wrong(Hook):
        def after_train_iteration(self, runner):
            """Never called."""

    with pytest.raises(ConfigError, match="after_train_iter'"):
        Dispatch({"wrong": Wrong()})


def test_state_goes_to_the_hook_of_that_name():
    class Counter(Hook):
        def __init__(self, count):
            self.count = count

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    states = Dispatch({"a": Counter(3), "b": Counter(5), "plain": Hook()}).state_dict()
    assert states == {"a": {"count": 3}, "b": {"count": 5}}
    hooks = {"b": Counter(0), "c": Counter(1)}
    Dispatch(hooks).load_state_dict(states)
    assert (hooks["b"].count, hooks["c"].count) == (5, 1)
