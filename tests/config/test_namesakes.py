"""Two hooks of one name, in files that are chosen together."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from trainyard.config.explain import explain
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.schema import check
from trainyard.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
TIMER = "{name}:\n  _target_: trainyard.hooks.{kind}\n"


@pytest.fixture
def checked(tmp_path):
    """Checks what the overrides compose, with these files beside our own options of `hook`."""

    def run(files, *overrides):
        (tmp_path / "hook").mkdir()
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


def test_they_are_told_with_both_files(checked):
    with pytest.raises(ConfigError) as error:
        checked(MINE, "hook=[default,mine]")
    assert str(error.value) == (
        "hook.timer: 'trainyard.hooks.EmptyCache' given; accepted: one hook of that name, where hook/default.yaml has "
        "trainyard.hooks.IterTimer. Give the one in hook/mine.yaml another name; or, to have it replace the other, "
        "choose it without default and put `defaults: [default]` at its top."
    )


def test_two_of_ones_own_files(checked):
    files = {"a": TIMER.format(name="x", kind="IterTimer"), "b": TIMER.format(name="x", kind="Norms")}
    with pytest.raises(ConfigError, match=r"where hook/a\.yaml has trainyard\.hooks\.IterTimer"):
        checked(files, "hook=[default,a,b]")


@pytest.mark.parametrize(
    ("files", "override"),
    [
        ({"mine": "defaults: [default]\n" + MINE["mine"]}, "hook=[mine,progress]"),
        ({"mine": TIMER.format(name="other", kind="EmptyCache")}, "hook=[default,mine]"),
        ({"mine": TIMER.format(name="timer", kind="IterTimer")}, "hook=[default,mine]"),
        ({"mine": "logger:\n  interval: 5\n"}, "hook=[default,mine]"),
        (MINE, "hook=mine"),
        ({}, "hook=[]"),
        ({}, "hook=[default,ema,default]"),
    ],
    ids=["replaced", "other name", "same hook", "changed", "alone", "none", "twice"],
)
def test_what_loses_nothing_passes(checked, files, override):
    assert isinstance(checked(files, override), dict)


def test_two_in_one_file(checked, tmp_path):
    text = TIMER.format(name="timer", kind="IterTimer") * 2
    with pytest.raises(Exception, match="duplicate key timer") as raised:
        checked({"mine": text}, "hook=[default,mine]")
    told = explain(raised.value, [], str(CONF), "train")
    assert str(told) == f"{tmp_path}/hook/mine.yaml, line 3: found duplicate key timer."
