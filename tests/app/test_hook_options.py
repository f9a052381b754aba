"""Options of `hook` add to the default hooks."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trainyard.config.hydra_versions import VERSION_BASE

CONF = Path(__file__).parents[2] / "conf"
DEFAULT = ["progress", "runtime_info", "timer", "logger", "param_schedule", "checkpoint", "predictions"]
FILES = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "hook").glob("*.yaml"))}
OTHERS = sorted(FILES.keys() - {"default", "progress"})


def hooks(*overrides: Any, folder: Any = CONF) -> Any:
    with initialize_config_dir(str(folder), **VERSION_BASE):
        return compose("train", list(overrides)).hook


@pytest.mark.parametrize("overrides", [[], ["hook=default"], ["hook=[default]"], ["hook=[default,progress]"]])
def test_the_default_hooks(overrides: Any) -> None:
    assert list(hooks(*overrides)) == DEFAULT


@pytest.mark.parametrize("option", OTHERS)
def test_an_option_adds_what_it_has(option: Any) -> None:
    own = [name for name in FILES[option] if name != "defaults"]
    chosen = hooks(f"hook={option}")
    assert list(chosen) == [*DEFAULT, *own]
    for name in own:
        assert chosen[name] == FILES[option][name]


@pytest.mark.parametrize(
    ("overrides", "added"),
    [
        (["hook=[default,progress,ema]"], ["ema"]),
        (["hook=[ema,early_stop]"], ["ema", "early_stop"]),
        (["hook=[default,ema]"], ["ema"]),
        (["hook=[ema,default]"], ["ema"]),
        (["hook=[ema,ema]"], ["ema"]),
        (["experiment=digits_cnn"], ["ema", "nan_guard"]),
        (["experiment=digits_cnn", "hook=[ema,norms]"], ["ema", "norms"]),
    ],
)
def test_several(overrides: Any, added: Any) -> None:
    assert list(hooks(*overrides)) == [*DEFAULT, *added]


def test_no_hooks() -> None:
    assert list(hooks("hook=[]")) == []


def test_an_experiment_chooses(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /hook: ema]\nhook: {ema: {decay: 0.5}, logger: {interval: 3}}\n"
    )
    chosen = hooks("experiment=mine", f"hydra.searchpath=[file://{tmp_path}]")
    assert list(chosen) == [*DEFAULT, "ema"]
    assert (chosen.ema.decay, chosen.logger.interval) == (0.5, 3)


def test_values_of_an_option_win_over_the_default_ones_and_the_command_line_over_both(tmp_path: Path) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/mine.yaml").write_text("defaults: [default, _self_]\nlogger: {interval: 3, by: iter}\n")
    where = f"hydra.searchpath=[file://{tmp_path}]"
    for choice in ("hook=mine", "hook=[ema,mine]"):
        chosen = hooks(choice, "hook.logger.by=epoch", where)
        assert (chosen.logger.interval, chosen.logger.by, chosen.logger.line_every) == (3, "epoch", 5.0)
    assert hooks("hook=mine", "hook.logger.interval=4", where).logger.interval == 4
