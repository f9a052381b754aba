"""Any leaf of a config with any value is taken, or refused by an error that names it, before the training."""

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.schema import check
from trainyard.errors import TrainyardError
from trainyard.runner import Runner

CONF = Path(__file__).parents[2] / "conf"
MODELS = (
    ("model=mlp", "data=rings", "data.num_samples=60", "model.hidden=[4]"),
    ("model=cnn", "data=digits", "model.channels=[2]"),
    ("model=transformer", "data=text", "model.dim=8", "model.layers=1", "data.context_length=8"),
)
WRONG: tuple[Any, ...] = (
    None,
    "",
    " ",
    "abc",
    "auto",
    True,
    0,
    -1,
    -0.5,
    2.5,
    1e400,
    math.nan,
    10**15,
    10**30,
    [],
    {},
    [None],
    [[]],
    {"a": 1},
)
SLOW = ("compile", "layers")  # torch's compiler; a model of so many layers is one
OPTIONS = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("optim", "schedule", "hook")
}
OPTIONS["hook"].remove("unfreeze")  # it needs patterns
OPTIONS["optim"].remove("model")  # it is for models that configure their optimizers


@cache
def _composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        cfg = compose("train", overrides=[*overrides, "tracker=none", "work_dir=null", "loop.max_epochs=1"])
    return OmegaConf.to_container(cfg, resolve=True)


@cache
def _option(group: str, name: str) -> Any:
    own: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    defaults = own.pop("defaults", [])
    for each in defaults:
        if each != "_self_":
            own = _option(group, each) | own
    return own


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from _leaves(entry, (*path, name))
    else:
        yield path


@st.composite
def mutations(draw: Any) -> Any:
    """A config, the place of one of its leaves, and another value for it."""
    values = copy.deepcopy(_composed(*draw(st.sampled_from(MODELS))))
    for group, names in OPTIONS.items():
        values[group] = copy.deepcopy(_option(group, draw(st.sampled_from(names))))
    group = draw(st.sampled_from([key for key in values if key not in SLOW]))
    path = draw(st.sampled_from([path for path in _leaves(values[group], (group,)) if path[-1] not in SLOW]))
    node: Any = values
    for name in path[:-1]:
        node = node[name]
    wrong = draw(st.sampled_from(WRONG))
    old = node[path[-1]]
    if isinstance(old, list) and old and draw(st.booleans()):
        wrong = [wrong] * len(old)
    node[path[-1]] = wrong
    return values, path


@pytest.fixture(scope="module", autouse=True)
def text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A short text in place of the help topics."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("a short text of few characters, " * 20)
    _composed.cache_clear()
    for overrides in MODELS:
        composed = _composed(*overrides)
        if "path" in composed["data"]:
            composed["data"]["path"] = str(file)


@settings(max_examples=200, derandomize=True)
@given(mutations())
def test_a_leaf_with_another_value_is_taken_or_named(mutation: Any) -> None:
    values, path = mutation
    told = None
    try:
        Runner.from_cfg(check(OmegaConf.create(values)), work_dir=None).prepare()
    except TrainyardError as error:
        told = str(error)
    # That a metric has another name shows in what names the metric.
    assert told is None or str(path[-1]) in told or told.startswith("objective: ")
