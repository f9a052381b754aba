"""Two hooks of one name, in files that are chosen together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from trainyard.config.explain import explain
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.places import ConfigPlaces
from trainyard.config.schema import check
from trainyard.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
TIMER = "{name}:\n  _target_: trainyard.hooks.{kind}\n"


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Any]:
    """Checks what the overrides compose, with these files beside our own options of `hook`."""

    def run(files: Any, *overrides: Any) -> Any:
        (tmp_path / "hook").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "hook" / f"{name}.yaml").write_text(text)
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            given = [*overrides, f"hydra.searchpath=[file://{tmp_path}]", "work_dir=null"]
            config = compose("train", given, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return check(config)["hook"]

    yield run
    HydraConfig.instance().cfg = None
    GlobalHydra.instance().clear()


MINE = {"mine": TIMER.format(name="timer", kind="EmptyCache")}
ADDED = "defaults: [default, _self_]\n"
OFTEN = {"often": ADDED + "logger:\n  interval: 5\n"}
RARE = {"rare": "logger:\n  interval: 5\n"}  # as options were written before they brought default along


def test_they_are_told_with_both_files(checked: Any) -> None:
    with pytest.raises(ConfigError) as error:
        checked(MINE, "hook=[default,mine]")
    assert str(error.value) == (
        "hook.timer: 'trainyard.hooks.EmptyCache' is invalid. Expected only one hook with this name: hook/default.yaml "
        "has trainyard.hooks.IterTimer. Rename the hook in hook/mine.yaml. Or, to replace the hook of "
        "hook/default.yaml, put `defaults: [default, _self_]` at the top of hook/mine.yaml."
    )


def test_two_of_ones_own_files(checked: Any) -> None:
    files = {"a": TIMER.format(name="x", kind="IterTimer"), "b": TIMER.format(name="x", kind="Norms")}
    with pytest.raises(ConfigError, match=r"with this name: hook/a\.yaml has trainyard\.hooks\.IterTimer"):
        checked(files, "hook=[default,a,b]")


@pytest.mark.parametrize(
    ("files", "override"),
    [
        ({"mine": "defaults: [default]\n" + MINE["mine"]}, "hook=[mine,progress]"),
        ({"mine": ADDED + MINE["mine"]}, "hook=[ema,mine]"),
        ({"mine": ADDED + MINE["mine"]}, "hook=mine"),
        (OFTEN, "hook=[ema,often]"),
        ({"mine": TIMER.format(name="other", kind="EmptyCache")}, "hook=[default,mine]"),
        ({"mine": TIMER.format(name="timer", kind="IterTimer")}, "hook=[default,mine]"),
        ({"mine": "logger:\n  interval: 5\n"}, "hook=[default,mine]"),
        (MINE, "hook=mine"),
        ({}, "hook=[]"),
        ({}, "hook=[default,ema,default]"),
    ],
    ids=[
        "replaced",
        "replaced last",
        "replaced alone",
        "changed last",
        "other name",
        "same hook",
        "changed",
        "alone",
        "none",
        "twice",
    ],
)
def test_what_loses_nothing_passes(checked: Any, files: Any, override: str) -> None:
    assert isinstance(checked(files, override), dict)


SET_BACK = (
    "hook.logger.interval: 5 is invalid. Expected 10, because hook/{0}.yaml is not the last file that sets "
    "this key: ema includes hook/default.yaml again, which resets the key. Choose {0} after ema, or set "
    "hook.logger.interval on the command line."
)


@pytest.mark.parametrize(
    ("files", "override"), [(OFTEN, "hook=[often,ema]"), (RARE, "hook=[default,rare,ema]")], ids=["often", "rare"]
)
def test_a_value_that_a_later_option_sets_back(checked: Any, files: Any, override: str) -> None:
    with pytest.raises(ConfigError) as error:
        checked(files, override)
    assert str(error.value) == SET_BACK.format(*files)


def test_no_order_is_advised_if_both_orders_lose_a_value(checked: Any) -> None:
    files = OFTEN | {"brief": ADDED + "checkpoint:\n  max_keep: 7\n"}
    for override in ("hook=[often,brief]", "hook=both"):
        both = {"both": "defaults: [often, brief, _self_]\n"}
        with pytest.raises(ConfigError, match=r"resets the key\. Set hook\.logger\.interval on the command line\.$"):
            checked(files | both, override)
    assert checked(files, "hook=[often,brief]", "hook.logger.interval=5")["logger"]["interval"] == 5
    with pytest.raises(ConfigError, match=r"resets the key\. Set hook\.checkpoint\.max_keep on the command line\.$"):
        checked(files, "hook=[brief,often]")
    with pytest.raises(ConfigError, match=r"Choose often after brief, or set hook\.logger\.interval"):
        checked(files, "hook=[often,brief]", "hook.checkpoint.max_keep=7")


def test_a_hook_that_a_later_option_brings_back(checked: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^hook\.timer\._target_: 'trainyard\.hooks\.EmptyCache' is invalid. .* Choose mine"
    ):
        checked({"mine": ADDED + MINE["mine"]}, "hook=[mine,ema]")


def test_a_removed_hook_that_a_later_option_brings_back(checked: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^hook\.predictions: None is invalid. Expected a hook, .* ema includes hook/default\.yaml"
    ):
        checked({"mine": ADDED + "predictions: null\n"}, "hook=[mine,ema]")


def test_what_is_set_by_key_is_not_lost(checked: Any) -> None:
    assert checked(OFTEN, "hook=[often,ema]", "hook.logger.interval=7")["logger"]["interval"] == 7


@pytest.mark.parametrize("value", [5, 10])
def test_both_values_can_be_set_by_key(checked: Any, value: int) -> None:
    assert checked(OFTEN, "hook=[often,ema]", f"hook.logger.interval={value}")["logger"]["interval"] == value


def test_in_ones_own_defaults_list(checked: Any) -> None:
    mine = "defaults: {}\nlogger:\n  interval: 5\n"
    with pytest.raises(ConfigError, match=r"Name _self_ last in the defaults list of hook/mine\.yaml"):
        checked({"mine": mine.format("[default, _self_, ema]")}, "hook=mine")
    assert checked({"mine": mine.format("[default, ema, _self_]")}, "hook=mine")["logger"]["interval"] == 5


def test_in_one_defaults_list(checked: Any) -> None:
    files = OFTEN | {"both": "defaults: [often, ema, _self_]\n"}
    with pytest.raises(ConfigError, match=r"Name often last in the defaults list of hook/both\.yaml, or set hook\.log"):
        checked(files, "hook=both")


def test_options_that_an_experiment_chooses(checked: Any, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [override /hook: {}]\n"
    (tmp_path / "experiment/wrong.yaml").write_text(text.format("[often, ema]"))
    (tmp_path / "experiment/right.yaml").write_text(text.format("[ema, often]"))
    with pytest.raises(ConfigError, match=r"^hook\.logger\.interval: 5 is invalid"):
        checked(OFTEN, "experiment=wrong")
    assert checked({}, "experiment=right")["logger"]["interval"] == 5


def test_two_in_one_file(checked: Any, tmp_path: Path) -> None:
    text = TIMER.format(name="timer", kind="IterTimer") * 2
    with pytest.raises(Exception, match="duplicate key timer") as raised:
        checked({"mine": text}, "hook=[default,mine]")
    told = explain(raised.value, [], ConfigPlaces(str(CONF), "train"))
    assert str(told) == f"{tmp_path}/hook/mine.yaml, line 3: found duplicate key timer."
