"""From nodes to objects: targets found, arguments checked, `auto` filled in."""

import functools
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.config.annotations import UNKNOWN, annotation, fits
from trainyard.config.build import build, build_all, check_node, check_tree, fill_auto, is_node, locate
from trainyard.config.hydra_versions import any_target
from trainyard.errors import ConfigError, TrainyardError

# Things that can be named in a config: functions and classes of real modules.
PATHS = [
    f"{module}.{name}"
    for module in ("torch.nn", "torch.optim", "torch.optim.lr_scheduler", "trainyard.models", "trainyard.hooks", "math")
    for name, found in vars(importlib.import_module(module)).items()
    if not name.startswith("_") and callable(found)
]
paths = st.sampled_from(PATHS)


# -- locate ------------------------------------------------------------------------------------------------------------


@given(paths)
def test_what_can_be_imported_is_found(path: Any) -> None:
    module, _, name = path.rpartition(".")
    assert locate(path, "model._target_") is getattr(importlib.import_module(module), name)


@given(paths, st.data())
def test_a_letter_less_is_told_with_what_was_meant(path: Any, data: st.DataObject) -> None:
    """Unless it is the name of something else, or so short that nothing is near."""
    module, _, name = path.rpartition(".")
    at = data.draw(st.integers(0, len(name) - 1))
    wrong = f"{module}.{name[:at]}{name[at + 1 :]}"
    if wrong in PATHS or hasattr(importlib.import_module(module), wrong.rpartition(".")[2]) or len(name) < 4:
        return
    with pytest.raises(ConfigError) as error:
        locate(wrong, "model._target_")
    assert (error.value.key, error.value.given) == ("model._target_", wrong)
    assert f"Did you mean '{module}." in str(error.value)


@pytest.mark.parametrize("path", ["torch.optim.Adam.step", "trainyard.models.MLP", "functools.partial", "len"])
def test_methods_and_builtins(path: str) -> None:
    if "." in path:
        assert callable(locate(path, "x"))
    else:
        with pytest.raises(ConfigError, match="there is no module 'len'"):
            locate(path, "x")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("toch.optim.Adam", "there is no module 'toch'"),
        ("torch.optm.Adam", "torch has no 'optm'"),
        ("torch.optim.Adm", "torch.optim has no 'Adm'. Did you mean 'torch.optim.Adam'?"),
        ("torch.optim.Adam.steep", "torch.optim.Adam has no 'steep'. Did you mean 'torch.optim.Adam.step'?"),
        ("math.pi", "Expected a class or function"),
        ("torch.optim", "Expected a class or function"),
        ("", "Expected an importable dotted path"),
        (".torch", "Expected an importable dotted path"),
        ("torch..nn", "Expected an importable dotted path"),
        (None, "Expected an importable dotted path"),
        (3, "Expected an importable dotted path"),
    ],
)
def test_what_cannot_be_found(path: int | str | None, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        locate(path, "x._target_")
    assert told in str(error.value)


def test_a_module_of_ones_own_that_lacks_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to be taken for a module that is not there, even where its name begins like the missing one's."""
    (tmp_path / "absentee_tools.py").write_text("import absentee\n")
    (tmp_path / "absentee_package").mkdir()
    (tmp_path / "absentee_package" / "__init__.py").write_text("from absentee_package.absent import x\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="Importing absentee_tools failed: No module named 'absentee'"):
        locate("absentee_tools.Model", "model._target_")
    with pytest.raises(ConfigError, match=r"Importing absentee_package failed: .*'absentee_package.absent'"):
        locate("absentee_package.Model", "model._target_")


def test_an_error_in_a_module_of_ones_own_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        locate("broken_module.Model", "model._target_")


# -- check_node --------------------------------------------------------------------------------------------------------


def _signature(path: Any) -> Any:
    try:
        return inspect.signature(locate(path, "x")).parameters
    except (TypeError, ValueError):
        return None


@given(paths, st.data())
def test_arguments_are_those_of_the_signature(path: Any, data: st.DataObject) -> None:
    """The check says what calling would say: it passes where the call can bind, and not else."""
    parameters = _signature(path)
    if parameters is None:
        return
    names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given_names = data.draw(st.lists(st.sampled_from([*names, "no_such_argument"]), unique=True))
    target, fitting = locate(path, "x"), [0, 0.5, "", False, [0], None]
    node: dict[str, Any] = {"_target_": path}
    for name in given_names:
        kind = annotation(target, name) if name in parameters else UNKNOWN
        accepted = [value for value in fitting if kind is UNKNOWN or fits(value, kind)]
        if not accepted:
            return  # one of a few texts
        node[name] = accepted[0]
    try:
        inspect.signature(locate(path, "x")).bind(**dict.fromkeys(given_names, 0))
        binds = True
    except TypeError:
        positional_only = [p for p in parameters.values() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
        if positional_only:
            return  # only the call itself can tell
        binds = False
    if binds:
        check_node(node, "part")
    else:
        with pytest.raises(ConfigError, match=r"^part"):
            check_node(node, "part")


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (
            {"_target_": "torch.optim.Adam", "_partial_": True, "lrr": 1},
            "optim: 'lrr' is invalid. Expected an argument of",
        ),
        ({"_target_": "torch.optim.Adam", "_partial_": True, "lrr": 1}, "Did you mean 'lr'?"),
        ({"_target_": "torch.nn.Linear", "in_features": 3}, "optim.out_features: None is invalid. Expected a value"),
        ({"_target_": "torch.nn.Linear", "in_features": 3}, "torch.nn.Linear requires this argument"),
        ({"_target_": "trainyard.checks.integer"}, "optim.key: None is invalid"),
        ({"_target_": "builtins.object", "x": 1}, "Expected no arguments, because builtins.object accepts none."),
    ],
)
def test_arguments_that_do_not_fit(node: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_node(node, "optim")
    assert told in str(error.value)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.nn.Linear", "_partial_": True},
        {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 3},
        {"_target_": "torch.nn.Linear", "_args_": [3, 4]},
        {"_target_": "torch.nn.Linear", "_args_": [3], "out_features": 4},
        {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4, "_recursive_": False, "_convert_": "all"},
        {"_target_": "torch.nn.Sequential", "_args_": []},
        {"_target_": "builtins.dict", "anything": 1},
    ],
)
def test_arguments_that_fit(node: Any) -> None:
    check_node(node, "model")


def test_arguments_that_come_by_position() -> None:
    check_node({"_target_": "torch.nn.Linear"}, "model", positional=2)
    with pytest.raises(ConfigError, match="out_features"):
        check_node({"_target_": "torch.nn.Linear"}, "model", positional=1)


def test_every_node_of_a_tree_is_checked() -> None:
    tree = OmegaConf.create(
        {
            "model": {
                "_target_": "torch.nn.Sequential",
                "_args_": [{"_target_": "torch.nn.ReLU"}, {"_target_": "torch.nn.Linear", "in_features": 2, "bais": 1}],
            },
            "loss": "${model._args_.0}",
        }
    )
    with pytest.raises(ConfigError, match=r"^model\._args_\.1: 'bais' is invalid. .* Did you mean 'bias'"):
        check_tree(tree)
    tree.model._args_.pop(1)
    check_tree(tree)
    check_tree({"a": [1, {"b": None}], "c": "text"})


# -- build -------------------------------------------------------------------------------------------------------------


def test_objects_are_given_back_as_they_are() -> None:
    layer = torch.nn.Linear(1, 1)
    for value in (layer, None, 3, "text", [1], {"a": 1}):
        assert build(value, "x") is value
        assert not is_node(value)


def test_a_class_may_stand_for_its_path() -> None:
    made = build({"_target_": torch.nn.Linear, "in_features": 2, "out_features": 1}, "model")
    assert made.in_features == 2
    with pytest.raises(ConfigError, match="Did you mean 'bias'"):
        build({"_target_": torch.nn.Linear, "in_features": 2, "out_features": 1, "bais": True}, "model")


def test_nested_nodes_partials_and_positional_arguments() -> None:
    node = {
        "_target_": "torch.nn.Sequential",
        "_args_": [
            {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3},
            {"_target_": "torch.nn.ReLU"},
        ],
    }
    for config in (node, OmegaConf.create(node)):
        net = build(config, "model")
        assert [type(layer).__name__ for layer in net] == ["Linear", "ReLU"]
    made = build(
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}, "optim", [torch.nn.Parameter(torch.ones(1))]
    )
    assert isinstance(made, functools.partial)
    assert made().param_groups[0]["lr"] == 0.5


def test_constructors_are_given_plain_lists_and_dicts() -> None:
    made = build(OmegaConf.create({"_target_": "builtins.dict", "a": [1, {"b": [2]}]}), "x")
    assert made == {"a": [1, {"b": [2]}]}
    assert (type(made["a"]), type(made["a"][1])) == (list, dict)


@given(st.integers(1, 4), st.integers(1, 4))
def test_it_builds_what_hydra_builds(inputs: int, outputs: int) -> None:
    node = {"_target_": "torch.nn.Linear", "in_features": inputs, "out_features": outputs}
    with any_target():
        one, other = build(node, "x"), instantiate(node)
    assert repr(one) == repr(other)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"_target_": "trainyard.hooks.Logger", "interval": 0}, "hook.logger.interval: 0 is invalid"),
        (
            {"_target_": "trainyard.models.Supervised", "net": {"_target_": "trainyard.models.MLP", "in_features": 2,
                                                                "num_classes": 2, "dropout": 2}},
            "hook.logger.net.dropout: 2 is invalid",
        ),
        ({"_target_": "torch.nn.Dropout", "p": 7}, "hook.logger: ValueError('dropout probability"),
        (
            {"_target_": "optuna.pruners.PatientPruner", "wrapped_pruner": None, "patience": 1, "min_delta": -1.0},
            "hook.logger.min_delta: -1.0 is invalid. Expected a value that PatientPruner accepts. PatientPruner says: "
            "min_delta cannot be negative but got -1.0.",
        ),
        ({"_target_": "torch.nn.Dropout", "p": "x"}, "hook.logger.p: 'x' is invalid. Expected a number"),
        ({"_target_": "builtins.open", "file": "absent.txt"}, "No such file or directory"),
    ],
)  # fmt: skip
def test_values_that_are_refused_are_told_with_their_place(node: Any, told: str) -> None:
    for config in (node, OmegaConf.create({"hook": {"logger": node}}).hook.logger):
        with pytest.raises(TrainyardError) as error:
            build(config, "hook.logger")
        assert told in str(error.value)


def test_an_error_in_somebodys_code_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        build({"_target_": "operator.truediv", "_args_": [1, 0]}, "x")


def test_entries_that_are_none_are_left_out() -> None:
    assert build_all({"a": None, "b": 1, "c": {"_target_": "builtins.dict"}}, "hook") == {"b": 1, "c": {}}
    assert build_all(None, "hook") == build_all({}, "hook") == {}
    with pytest.raises(ConfigError, match=r"^hook\.c\._target_"):
        build_all({"c": {"_target_": "no.thing"}}, "hook")
    with pytest.raises(ConfigError, match=r"^hook: 'list' is invalid. Expected a mapping from names"):
        build_all([1], "hook")


# -- fill_auto ---------------------------------------------------------------------------------------------------------

FACTS = {"num_classes": 7, "input_shape": [3, 8, 8], "vocab_size": 11}
leaves = st.one_of(st.none(), st.integers(), st.text(max_size=3).filter(lambda text: text != "auto"), st.just("auto"))
names = st.sampled_from([*FACTS, "width"])
trees = st.recursive(
    st.dictionaries(names, leaves, max_size=3),
    lambda inner: st.dictionaries(names, st.one_of(inner, leaves, st.lists(inner, max_size=2)), max_size=3),
    max_leaves=12,
)


def _reference(value: Any, name: str = "") -> Any:
    """Filled in, by the one rule; a KeyError where there is no such fact."""
    if isinstance(value, dict):
        return {key: _reference(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [_reference(entry) for entry in value]
    return FACTS[name] if value == "auto" else value


@given(trees)
def test_every_auto_becomes_the_fact_of_its_name(tree: Any) -> None:
    try:
        expected = _reference(tree)
    except KeyError:
        with pytest.raises(
            ConfigError,
            match=r"'auto' is invalid. Expected an explicit value, because this data defines only input_shape, "
            r"num_",
        ):
            fill_auto(tree, "model", FACTS)
        return
    before = repr(tree)
    assert fill_auto(tree, "model", FACTS) == expected
    assert fill_auto(OmegaConf.create(tree), "model", FACTS) == expected
    assert repr(tree) == before


def test_an_auto_without_a_fact_names_its_place_and_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        fill_auto({"heads": [{"a": 1}, {"num_class": "auto"}]}, "model", FACTS)
    assert str(error.value).startswith("model.heads.1.num_class: 'auto' is invalid")
    with pytest.raises(ConfigError, match="because there is no data from which the value can be inferred"):
        fill_auto({"num_classes": "auto"}, "model", None)


def test_objects_and_interpolations() -> None:
    layer = torch.nn.Linear(1, 1)
    assert fill_auto(layer, "model", None) is layer
    assert fill_auto({"net": layer, "num_classes": "auto"}, "model", FACTS) == {"net": layer, "num_classes": 7}
    cfg = OmegaConf.create({"width": 5, "model": {"hidden": "${width}", "num_classes": "auto"}})
    assert fill_auto(cfg.model, "model", FACTS) == {"hidden": 5, "num_classes": 7}


@pytest.mark.parametrize("plain", [True, False])
def test_a_size_that_memory_cannot_hold_is_named(plain: bool) -> None:
    node = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 10**15}
    with pytest.raises(
        ConfigError, match=rf"^model\.out_features: {10**15} is invalid. Expected a size that fits into the memory"
    ):
        build(node if plain else OmegaConf.create(node), "model")


def test_partial_is_true_or_false() -> None:
    node = {"_target_": "torch.optim.SGD", "_partial_": "yes"}
    with pytest.raises(ConfigError, match=r"^optim\._partial_: 'yes' is invalid. Expected true or false"):
        build(node, "optim")
    with pytest.raises(ConfigError, match=r"^optim\.params: .* With `_partial_: true`, the run passes this argument\."):
        build(node | {"_partial_": False}, "optim")
    for target, name in (
        ("torch.optim.SGD", "params"),
        ("torch.optim.lr_scheduler.ConstantLR", "optimizer"),
        ("torch.nn.functional.cross_entropy", "input"),
    ):
        with pytest.raises(ConfigError, match=rf"^part\.{name}: .* With `_partial_: true`, the run passes this"):
            build({"_target_": target}, "part")


def test_a_model_that_does_not_read_tokens_gets_the_name_of_one_that_does() -> None:
    with pytest.raises(ConfigError, match=r"only context_length, vocab_size\. For .* tokens, use model=transformer\.$"):
        fill_auto({"in_features": "auto"}, "model", {"vocab_size": 5, "context_length": 8})
