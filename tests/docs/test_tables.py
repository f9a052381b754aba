"""The tables of docs/ about arguments, groups and options say what the code and conf/ say."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_tables import Row, codes, defaults, names, page, plain, section, table, value
from omegaconf import OmegaConf

import trainyard.metrics
from hydra_plugins.trainyard_launcher import GridSweeper
from trainyard.config.compiling import ARGUMENTS, MODES
from trainyard.config.sweepers import SETTINGS
from trainyard.distributed.ddp import DDP
from trainyard.distributed.fsdp import FSDP
from trainyard.errors import ConfigError
from trainyard.fused.train import ALLOWED
from trainyard.metrics import Metric
from trainyard.optim.paramwise import Paramwise
from trainyard.runner import Env, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from trainyard.runner.weights import LoadFrom
from trainyard.schedules import Plateau, Schedule
from trainyard.step.precision import make_precision
from trainyard.sweep.settings import SweepSettings
from trainyard.track import MLflowTracker

CONF = Path(__file__).parents[2] / "conf"
HYDRAS = ("_target_", "_partial_", "_recursive_", "defaults")
ABSENT = "\N{EN DASH}"  # the cell of an argument that a class does not take


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """The named arguments of a class or function, each with its default."""
    found = inspect.signature(function).parameters.items()
    return {name: each.default for name, each in found if each.kind is not inspect.Parameter.VAR_KEYWORD}


def option(path: str) -> dict[str, Any]:
    """The keys of an option, without those of Hydra's."""
    loaded = OmegaConf.to_container(OmegaConf.load(CONF / f"{path}.yaml"))
    assert isinstance(loaded, dict)
    return {str(key): plain(each) for key, each in loaded.items() if key not in HYDRAS}


def options(group: str) -> set[str]:
    return {file.stem for file in (CONF / group).glob("*.yaml")}


def groups() -> set[str]:
    """Every folder of conf/ that has options."""
    return {file.parent.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml")} - {"."}


def assert_defaults(shown: Mapping[str, str], code: Mapping[str, Any]) -> None:
    assert {key: value(text) for key, text in shown.items()} == {key: plain(given) for key, given in code.items()}


# -- docs/runner.md ----------------------------------------------------------------------------------------------------


def test_every_argument_of_the_runner_has_a_row() -> None:
    code = arguments(Runner)
    rows = table(section(page("runner.md"), "Arguments"), "argument")
    assert names(rows, "argument") == list(code)
    shown = defaults(rows, "default", "argument")
    assert shown.pop("model") == "required"
    assert code.pop("model") is inspect.Parameter.empty
    assert_defaults(shown, code)


def test_every_setting_of_train_yaml_is_an_argument_with_its_default() -> None:
    """docs/configuration.md says so of all but `mode` and `quick`."""
    config = OmegaConf.load(CONF / "train.yaml")
    assert set(config.limit.values()) == {None}
    config.limit = None  # a mapping without a limit, whose keys are seen in the config
    settings = set(config) - {"defaults", "hydra", "mode", "quick"}
    code = {name: each for name, each in arguments(Runner).items() if name in settings - {"hook", "work_dir"}}
    assert settings - {"hook", "work_dir"} == set(code)
    assert {name: plain(config[name]) for name in code} == {name: plain(each) for name, each in code.items()}


def test_every_argument_of_the_loops_has_a_row() -> None:
    rows = table(section(page("runner.md"), "Loops"), "argument")
    for loop, chosen in ((EpochBasedTrainLoop, "loop/epoch"), (IterBasedTrainLoop, "loop/iter")):
        own = [row for row in rows if row[f"`{loop.__name__}`"] != ABSENT]
        assert names(own, "argument") == list(arguments(loop))
        code = arguments(loop)
        shown = defaults(own, f"`{loop.__name__}`", "argument")
        (length,) = (name for name, default in code.items() if default is inspect.Parameter.empty)
        assert shown.pop(length) == "required"
        assert_defaults(shown, {name: default for name, default in code.items() if name != length})
        assert_defaults(defaults(own, f"`{chosen.replace('/', '=')}`", "argument"), option(chosen))


def test_the_precisions_have_a_row() -> None:
    with pytest.raises(ConfigError) as told:
        make_precision("", torch.device("cpu"))
    assert names(table(page("runner.md"), "`precision`"), "`precision`") == list(told.value.options)


def test_what_a_loop_has_is_what_ours_have() -> None:
    rows = table(section(page("runner.md"), "A loop of your own"), "name")
    for name in names(rows, "name"):
        assert hasattr(EpochBasedTrainLoop(1), name.partition("(")[0]), name


# -- docs/configuration.md ---------------------------------------------------------------------------------------------


def test_every_group_has_a_row_with_its_options() -> None:
    rows = table(page("configuration.md"), "group")
    shown = {codes(row["group"])[0]: codes(row["options"]) for row in rows}
    assert sum(len(codes(row["group"])) for row in rows) == len(shown) == len(rows), "a row for each group"
    assert {group: set(listed) for group, listed in shown.items()} == {group: options(group) for group in groups()}
    assert all(listed == sorted(listed) for listed in shown.values())


def test_every_group_has_a_row_with_its_default() -> None:
    chosen: dict[str, Any] = dict.fromkeys(groups())
    for entry in OmegaConf.load(CONF / "train.yaml").defaults:
        for key, choice in entry.items() if OmegaConf.is_config(entry) else ():
            chosen[key.removeprefix("override ")] = plain(choice)
    for sweeper in ("grid", "search"):
        for entry in OmegaConf.load(CONF / f"hydra/sweeper/{sweeper}.yaml").defaults:
            for key, choice in entry.items() if OmegaConf.is_config(entry) else ():
                chosen[f"hydra/sweeper/{key}"] = plain(choice)
    shown = {
        codes(row["group"])[0]: value(codes(row["default"])[0]) for row in table(page("configuration.md"), "group")
    }
    assert shown == {group: chosen[group] for group in groups()}


def test_every_argument_of_env_has_a_row() -> None:
    rows = table(page("configuration.md"), "key")
    shown = {key.removeprefix("env."): default for key, default in defaults(rows, "default").items()}
    assert_defaults(shown, arguments(Env))
    assert_defaults(shown, option("env/default"))


# -- docs/sweeps.md, docs/tracking.md, docs/distributed.md, docs/fused.md ----------------------------------------------


def test_every_option_of_the_launcher_has_a_row() -> None:
    shown = defaults(table(page("sweeps.md"), "`hydra.launcher.`"), "default", "`hydra.launcher.`")
    assert_defaults(shown, arguments(SweepSettings))
    assert_defaults(shown, option("hydra/launcher/local"))


def test_every_option_of_the_sweeper_has_a_row() -> None:
    shown = defaults(table(page("sweeps.md"), "`hydra.sweeper.`"), "default", "`hydra.sweeper.`")
    assert set(shown) == set(arguments(GridSweeper))
    assert shown.pop("pruner") == "none", "a group of its own"
    assert_defaults(shown, option("hydra/sweeper/grid"))


def test_every_option_of_a_search_has_a_row() -> None:
    shown = defaults(table(page("search.md"), "`hydra.sweeper.`"), "default", "`hydra.sweeper.`")
    assert set(shown) == set(SETTINGS["search"]) - {"sampler", "pruner"}
    assert_defaults(shown, option("hydra/sweeper/search"))
    for group in ("sampler", "pruner"):
        rows = table(section(page("search.md"), f"{group.title()}s"), "option")
        assert set(names(rows, "option")) == options(f"hydra/sweeper/{group}")


def test_every_option_of_the_tracker_has_a_row() -> None:
    shown = defaults(table(page("tracking.md"), "`tracker.`"), "default", "`tracker.`")
    assert_defaults(shown, arguments(MLflowTracker))
    assert_defaults(shown, option("tracker/mlflow"))


@pytest.mark.parametrize(("strategy", "chosen"), [(DDP, "ddp"), (FSDP, "fsdp")])
def test_every_option_of_a_strategy_has_a_row(strategy: type, chosen: str) -> None:
    rows = [row for row in table(page("distributed.md"), "`strategy.`") if row[f"`{chosen}`"] != ABSENT]
    shown = defaults(rows, f"`{chosen}`", "`strategy.`")
    assert_defaults(shown, arguments(strategy))
    assert_defaults(shown, option(f"strategy/{chosen}"))


def test_what_may_differ_within_a_stack_has_a_row() -> None:
    assert names(table(section(page("fused.md"), "What is fused"), "key"), "key") == list(ALLOWED)


# -- docs/models.md, docs/data.md, docs/optim.md -----------------------------------------------------------------------


def assert_options(rows: Iterable[Row], column: str, group: str) -> None:
    shown = [codes(row[column])[0].rpartition("=")[2] for row in rows]
    assert sorted(shown) == sorted(options(group))


def targets(group: str) -> dict[str, str]:
    """The class of each option of a group."""
    return {name: str(OmegaConf.load(CONF / group / f"{name}.yaml")._target_) for name in options(group)}


@pytest.mark.parametrize("group", ["model", "model/data_preprocessor", "optim"])
def test_every_option_has_a_row_with_its_class(group: str) -> None:
    pages = {"model": ("models.md", "Built-in models", "option"), "optim": ("optim.md", "Optimizers", "`optim=`")}
    where = ("models.md", "What is done to a batch: `data_preprocessor`", "option")
    name, heading, column = pages.get(group, where)
    rows = table(section(page(name), heading), column)
    assert_options(rows, column, group)
    classes = targets(group)
    for row in rows:
        shown = codes(row["class"])[0].partition("(")[0]
        kept = classes[codes(row[column])[0].rpartition("=")[2]]
        assert shown in (kept, kept.rpartition(".")[2]), row


def test_every_option_of_data_has_a_row() -> None:
    assert_options(table(page("data.md"), "option"), "option", "data")


def test_every_schedule_has_a_row() -> None:
    rows = table(page("optim.md"), "`schedule=`")
    assert_options(rows, "`schedule=`", "schedule")
    for row in rows:
        name = codes(row["`schedule=`"])[0]
        config = OmegaConf.load(CONF / "schedule" / f"{name}.yaml")
        numbers = ("scheduler" in config and config.scheduler) or config
        assert set(codes(row["arguments, under `schedule.scheduler.`"].partition("(")[0])) <= set(numbers), name
        if name not in ("plateau", "several"):
            assert row["unit (`schedule.by`)"] == (config.by or "loop's own"), name


def test_the_numbers_of_optimizers_are_keys_of_their_options() -> None:
    for row in table(page("optim.md"), "`optim=`"):
        keys = option(f"optim/{codes(row['`optim=`'])[0]}")
        assert set(codes(row["numbers to tune first"])) <= set(keys)
        assert row["implementation"] in (*keys, "closure", "loop", "its own"), row


@pytest.mark.parametrize(("schedule", "column"), [(Schedule, "key"), (Plateau, "`schedule.`")])
def test_every_argument_of_a_schedule_has_a_row(schedule: type, column: str) -> None:
    shown = defaults(table(section(page("optim.md"), "Schedules"), column), "default", column)
    code = arguments(schedule)
    assert set(shown) == set(code)
    assert_defaults(shown, code)


def test_the_options_of_plateau_are_its_arguments() -> None:
    assert option("schedule/plateau") == {name: plain(each) for name, each in arguments(Plateau).items()}


def test_every_rule_for_single_parameters_has_a_row() -> None:
    shown = names(table(section(page("optim.md"), "Rules for individual parameters"), "rule"), "rule")
    assert {name.partition(".")[0] for name in shown if not name.startswith(".")} == set(arguments(Paramwise))


def test_the_modes_and_arguments_of_compile_are_told() -> None:
    rows = table(page("optim.md"), "setting")
    (with_mode,) = (row for row in rows if row["setting"] == "`compile=max-autotune`")
    (with_arguments,) = (row for row in rows if "fullgraph" in row["setting"])
    assert codes(with_mode["meaning"])[1:] == list(MODES)
    assert codes(with_arguments["meaning"])[1:] == list(ARGUMENTS)


def test_every_key_of_load_from_has_a_row() -> None:
    shown = names(table(section(page("models.md"), "Weights from a file: `load_from`"), "key"), "key")
    assert shown == list(arguments(LoadFrom))


def test_every_metric_has_a_row() -> None:
    """Adapters of other libraries' metrics, which no config names, are not in the table."""
    shown = {name.partition("(")[0] for name in names(table(section(page("models.md"), "Metrics"), "class"), "class")}
    public = {name: getattr(trainyard.metrics, name) for name in trainyard.metrics.__all__}
    found = {
        name
        for name, each in public.items()
        if isinstance(each, type) and issubclass(each, Metric) and not inspect.isabstract(each)
    }
    assert shown == found - {"TorchMetric", "MMEngineMetric", "FunctionMetric"}
