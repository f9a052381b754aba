"""Hydra's complaints, in our words: what composing raises, explained."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from trainyard.config.explain import explain
from trainyard.config.hydra_versions import VERSION_BASE

CONF = str(Path(__file__).parents[2] / "conf")


def told(*overrides: Any) -> Any:
    """What is said of a command with these overrides."""
    with pytest.raises(Exception) as raised, initialize_config_dir(CONF, **VERSION_BASE):  # noqa: PT011 - Hydra has many
        compose("train", overrides=["tracker=none", *overrides])
    explained = explain(raised.value, ["tracker=none", *overrides], CONF, "train")
    return None if explained is None else str(explained)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=mpl"], "model: 'mpl' given; accepted: one of cnn, mlp, resnet, transformer. Did you mean 'mlp'?"),
        (["hook=[default,emma]"], "hook: 'emma' given; accepted: one of default, early_stop, ema, "),
        (["model="], "model: '' given; accepted: one of cnn, mlp, resnet, transformer."),
        (["model=null"], "model: None given; accepted: one of cnn, mlp, resnet, transformer."),
        (["tracker=null"], "tracker: None given; accepted: one of mlflow, none. Did you mean 'none'?"),
        (["seed=3", "optim=0.1"], "optim: 0.1 given; accepted: one of adagrad, adam, "),
        (["optm=adam"], "optm: 'optm' given; accepted: a group or key of this config. Did you mean 'optim'?"),
        (["optm.lr=1"], "optm.lr: 'optm' given; accepted: a group or key of this config. Did you mean 'optim'?"),
        (["optim.lrr=1"], "optim.lrr: 'lrr' given; accepted: a key of optim: _target_, _partial_, lr, betas, "),
        (["optim.lrr=1"], "Did you mean 'lr'? A new key is added with +optim.lrr=…"),
        (["~optim.lrr"], "optim.lrr: 'lrr' given; accepted: a key of optim"),
        (["hook.logger.intervall=3"], "Did you mean 'interval'?"),
        (["hook.ema.decay=0.9"], "hook.ema.decay: 'ema' given; accepted: a key of hook: progress, runtime_info, "),
        (["hook.ema.decay=0.9"], "ema is an option of hook that is not chosen: hook=ema adds it."),
        (["hook.chekpoint.by=iter"], "hook.chekpoint.by: 'chekpoint' given; accepted: a key of hook"),
        (["hook.chekpoint.by=iter"], "Did you mean 'checkpoint'?"),
        (["optim.lr=[1"], "'optim.lr=[1' cannot be read as an override"),
        (["seed.a.b=1"], "seed.a.b: "),
    ],
)  # fmt: skip
def test_what_was_meant(overrides: Any, message: str) -> None:
    assert message in told(*overrides)


def test_only_one_of_several_overrides_is_wrong() -> None:
    """The others are composed, so that what they choose is what is listed."""
    assert "a key of data: _target_, num_samples, noise, " in told("data=rings", "data.nois=1", "seed=1")


def test_what_is_none_of_hydras_is_left_alone() -> None:
    for error in (ZeroDivisionError(), KeyError("x"), ValueError("mine")):
        assert explain(error, [], CONF, "train") is None


def test_a_directory_that_cannot_be_made() -> None:
    error = PermissionError(13, "Permission denied", "/outputs")
    assert str(explain(error, [], CONF, "train")) == (
        "hydra.run.dir: '/outputs' given; accepted: a directory that can be made and written. Permission denied."
    )
