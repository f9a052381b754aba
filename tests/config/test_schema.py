"""The settings that the framework itself owns, and the check of a whole config."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.schema import MODES, Settings, check
from trainyard.errors import ConfigError
from trainyard.runner import Runner

CONF = Path(__file__).parents[2] / "conf"
GOOD = {
    "mode": "train",
    "seed": 3,
    "device": "cpu",
    "precision": "bf16",
    "accumulate": 2,
    "accumulate_by": "batches",
    "limit": {"train_batches": 10},
    "overfit": 8,
    "clip_grad_norm": 0.5,
    "clip_grad_value": None,
    "init": {"Conv2d": "kaiming_normal", "Linear": {"weight": {"_target_": "normal", "std": 0.01}, "bias": 0}},
    "freeze": ["net.0"],
    "activation_checkpointing": ["net.*"],
    "compile": True,
    "capture": False,
    "objective": "val/accuracy",
    "direction": "maximize",
    "sanity_check": False,
    "load_from": "run/checkpoints/best.pt",
    "resume": True,
    "resume_override": ["optim.lr", "data.batch_size"],
    "name": "mine",
    "quick": False,
    "work_dir": "outputs/run",
}


def problem(**values: Any) -> Any:
    """What is said of these settings; None where they pass."""
    try:
        check(OmegaConf.create(values))
    except ConfigError as error:
        return str(error)
    return None


def test_good_settings() -> None:
    assert set(GOOD) == {field.name for field in fields(Settings)}
    assert problem(**GOOD) is None
    assert problem() is None
    assert problem(clip_grad_norm=None, load_from=None, name=None, work_dir=None, resume="epoch_0002.pt") is None
    assert problem(**{"my.key": 1}) is None
    assert problem(mine={"anything": [1, 2]}) is None, "other keys are the application's own"


def test_every_setting_is_an_argument_of_the_runner_and_in_the_config() -> None:
    """With the same default; `mode` and `quick` are the application's."""
    defaults = {field.name: field.default for field in fields(Settings)}
    keywords = Runner.__init__.__kwdefaults__
    own = {name: value for name, value in defaults.items() if name not in ("mode", "quick")}
    assert {name: keywords[name] for name in own} == own
    written = OmegaConf.load(CONF / "train.yaml")
    assert set(written.pop("limit").values()) == {None}
    own = {name: value for name, value in defaults.items() if name not in ("work_dir", "limit")}
    assert {name: written[name] for name in own} == own


@pytest.mark.parametrize("name", ["seed", "accumulate"])
@pytest.mark.parametrize("value", [1.5, 2.0, "7", "abc", True, None, [1], {"a": 1}])
def test_integers(name: str, value: Any) -> None:
    expected = {"seed": "a non-negative integer of at most 63 bits", "accumulate": "an integer of at least 1"}[name]
    assert problem(**{name: value}) == f"{name}: {value!r} is invalid. Expected {expected}."


@given(st.integers(0, 2**62))
def test_any_integer_from_0_is_a_seed(seed: int) -> None:
    assert problem(seed=seed) is None
    for other in (-seed - 1, 2**63 + seed):
        assert problem(seed=other) == f"seed: {other} is invalid. Expected a non-negative integer of at most 63 bits."


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"seed": 1.5}, "seed: 1.5 is invalid. Expected a non-negative integer of at most 63 bits."),
        ({"seed": "7"}, "seed: '7' is invalid. Expected a non-negative integer of at most 63 bits."),
        ({"accumulate": 0}, "accumulate: 0 is invalid. Expected an integer of at least 1."),
        (
            {"clip_grad_norm": "1.0"},
            "clip_grad_norm: '1.0' is invalid. Expected a number above 0, or null for no clipping.",
        ),
        (
            {"clip_grad_norm": [1]},
            "clip_grad_norm: [1] is invalid. Expected a number above 0, or null for no clipping.",
        ),
        (
            {"clip_grad_value": True},
            "clip_grad_value: True is invalid. Expected a number above 0, or null for no clipping.",
        ),
        (
            {"clip_grad_norm": 0.0},
            "clip_grad_norm: 0.0 is invalid. Expected a number above 0, or null for no clipping.",
        ),
        (
            {"clip_grad_norm": 1, "clip_grad_value": 1},
            "clip_grad_value: 1 is invalid. Expected null, because clip_grad_norm is set.",
        ),
        (
            {"compile": "max-autotun"},
            "compile: 'max-autotun' is invalid. Expected true, false, null, a mapping of torch.compile's arguments, "
            "or a mode: default, reduce-overhead, "
            "max-autotune, "
            "max-autotune-no-cudagraphs. Did you mean 'max-autotune'?",
        ),
        ({"capture": "always"}, "capture: 'always' is invalid. Expected auto, true or false."),
        (
            {"compile": 3},
            "compile: 3 is invalid. Expected true, false, null, a mode, or a mapping of torch.compile's arguments.",
        ),
        (
            {"compile": {"mod": "default"}},
            "compile: 'mod' is invalid. Expected an argument of torch.compile: fullgraph, "
            "dynamic, backend, mode, options. Did you mean 'mode'?",
        ),
        ({"device": None}, "device: None is invalid. Expected a string."),
        (
            {"optim.lr": 0.1},
            "optim.lr: 0.1 is invalid. Expected nested keys in the config file: optim: {lr: …}.",
        ),
        (
            {"hydra.launcher.retries": 2},
            "hydra.launcher.retries: 2 is invalid. Expected nested keys in the config file: hydra: {launcher: "
            "{retries: …}}.",
        ),
        (
            {"load_from": 3},
            "load_from: 3 is invalid. Expected the path of a checkpoint or weights file, a mapping with `path`, or "
            "null.",
        ),
        (
            {"load_from": {"pth": "a.pt"}},
            "load_from: 'pth' is invalid. Expected one of the keys path, strict, revise_keys, include, exclude. "
            "Did you mean 'path'?",
        ),
        ({"freeze": "net"}, "freeze: 'net' is invalid. Expected a list of patterns (strings), or null."),
        (
            {"init": {"Linear": {"_target_": "torch.nn.init.normal_", "sdt": 1}}},
            "init.Linear: 'sdt' is invalid. Expected an argument of torch.nn.init.normal_: tensor, mean, std, "
            "generator. "
            "Did you mean 'std'?",
        ),
        ({"mode": "tset"}, "mode: 'tset' is invalid. Expected one of train, val, test. Did you mean 'test'?"),
        ({"resume": 3}, "resume: 3 is invalid. Expected true, false or the path of a checkpoint."),
        ({"resume": ["a"]}, "resume: ['a'] is invalid. Expected true, false or the path of a checkpoint."),
        (
            {"mode": "val"},
            "load_from: None is invalid. Expected the path of a checkpoint, because mode=val evaluates existing "
            "weights.",
        ),
    ],
)
def test_bad_settings(values: Any, told: str) -> None:
    assert problem(**values) == told


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: Any) -> None:
    assert problem(mode=mode, load_from="best.pt") is None
    assert problem(mode=mode, load_from={"path": "best.pt", "strict": False}) is None


def test_numbers_that_are_equal_will_do() -> None:
    assert problem(clip_grad_norm=1) is None
    assert problem(name=3) is None, "a run may be called 3"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("data: {sizes: [1, '???']}", "data.sizes.1: '???' is invalid. Expected a value: data.sizes.1=… on the"),
        ("data: {path: '???'}", "data.path: '???' is invalid. Expected a value: data.path=… on the command line"),
        ("a: ${b}", "a: '${b}' is invalid. Expected an interpolation that can be resolved"),
        ("a: ${oc.env:NO_SUCH_VARIABLE}", "a: '${oc.env:NO_SUCH_VARIABLE}' is invalid"),
        ("model: {_target_: torch.nn.Linear, bais: 1}", "model: 'bais' is invalid"),
        ("hook: {mine: {_target_: trainyard.hooks.Loger}}", "Did you mean 'trainyard.hooks.Logger'?"),
        ("a: [{b: {_target_: no.thing}}]", "a.0.b._target_: 'no.thing' is invalid"),
    ],
)
def test_what_is_wrong_with_a_config(config: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(OmegaConf.create(config))
    assert told in str(error.value)


@pytest.mark.parametrize("experiment", ["null", "digits_cnn", "text_transformer"])
def test_our_own_configs_pass(experiment: str) -> None:
    overrides = ["work_dir=null", *([] if experiment == "null" else [f"experiment={experiment}"])]
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        check(compose("train", overrides=overrides))
