"""A Runner from one composed config."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.errors import ConfigError
from trainyard.runner import EpochBasedTrainLoop, Runner, default_hooks

CONF = Path(__file__).parents[2] / "conf"


def test_from_cfg_takes_a_composed_config() -> None:
    overrides = ["data=rings", "data.num_samples=320", "model.hidden=[8]", "loop.max_epochs=2", "work_dir=null"]
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        cfg = compose("train", overrides=[*overrides, "hook=[default,ema]", "hook.ema.decay=0.5", "tracker=none"])
    runner = Runner.from_cfg(cfg, seed=3)
    assert (runner.seed, runner.work_dir, runner.members[0].objective.name) == (3, None, "val/accuracy")
    assert {"logger", "checkpoint", "ema"} <= set(runner.dispatch.hooks)
    assert runner.dispatch.hooks["ema"].decay == 0.5  # type: ignore[attr-defined]
    assert "val/accuracy" in runner.train()[0]


CFG = {
    "model": {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [4]},
    "data": {"_target_": "trainyard.data.Rings", "num_samples": 100},
    "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
    "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
    "device": "cpu",
    "mode": "train",
    "note": "the application's own",
}


@pytest.mark.parametrize("hook", [{}, {"ema": {"_target_": "trainyard.hooks.EMA"}, "gone": None}])
def test_from_cfg_takes_a_plain_dict_and_passes_over_other_keys(hook: Any) -> None:
    runner = Runner.from_cfg(CFG | {"hook": hook}, loop=EpochBasedTrainLoop(1))
    runner.train()
    assert runner.epoch == 1
    assert list(runner.dispatch.hooks) == list(hook)[:1]


def test_from_cfg_without_hooks_takes_the_default_ones() -> None:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        composed = OmegaConf.to_container(compose("train", ["hydra/launcher=basic"]).hook)
    assert default_hooks() == composed
    assert list(Runner.from_cfg(CFG).dispatch.hooks) == list(composed)


def test_from_cfg_without_a_model() -> None:
    with pytest.raises(ConfigError, match="model: 'NoneType' given"):
        _ = Runner.from_cfg({key: value for key, value in CFG.items() if key != "model"}).model


@pytest.mark.parametrize(
    ("cfg", "told"),
    [
        ({"model": {"type": "ResNet"}}, "model.type: 'ResNet' given"),
        (
            CFG | {"train_cfg": {"by_epoch": True, "max_epochs": 3}},
            "train_cfg: {'by_epoch': True, 'max_epochs': 3} given",
        ),
    ],
)
def test_a_config_of_mmengine_is_told_the_page(cfg: Any, told: str) -> None:
    for each in (cfg, OmegaConf.create(cfg)):
        with pytest.raises(ConfigError) as error:
            Runner.from_cfg(each)
        assert str(error.value).startswith(told)
        assert "This is a config of MMEngine. docs/coming-from-openmmlab.md" in str(error.value)
