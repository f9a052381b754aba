"""A Runner from one composed config."""

from pathlib import Path
from types import SimpleNamespace
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
    with pytest.raises(ConfigError, match="model: 'NoneType' is invalid"):
        _ = Runner.from_cfg({key: value for key, value in CFG.items() if key != "model"}).model


@pytest.mark.parametrize(
    ("cfg", "told"),
    [
        ({"model": {"type": "ResNet"}}, "model.type: 'ResNet' is invalid"),
        (
            CFG | {"train_cfg": {"by_epoch": True, "max_epochs": 3}},
            "train_cfg: {'by_epoch': True, 'max_epochs': 3} is invalid",
        ),
    ],
)
def test_a_config_of_mmengine_is_told_the_page(cfg: Any, told: str) -> None:
    for each in (cfg, OmegaConf.create(cfg), SimpleNamespace(_cfg_dict=cfg)):  # the last one: mmengine.Config
        with pytest.raises(ConfigError) as error:
            Runner.from_cfg(each)
        assert str(error.value).startswith(told)
        assert "This is an MMEngine config. docs/coming-from-openmmlab.md" in str(error.value)


QUICK = ["data=rings", "data.num_samples=100", "model.hidden=[4]", "loop.max_epochs=1", "tracker=none", "hook=[]"]


@pytest.fixture
def composed() -> Any:
    def run(*overrides: str) -> Any:
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            return compose("train", overrides=[*QUICK, *overrides])

    return run


def test_a_composed_config_outside_an_application_of_hydras(composed: Any, tmp_path: Path) -> None:
    """`work_dir` is an interpolation of Hydra's there; a keyword takes its place before it is resolved."""
    cfg = composed("name=in-${work_dir}")
    told = r"^work_dir: .* the directory of the run\. Pass a directory with Runner\.from_cfg\(cfg, work_dir="
    with pytest.raises(ConfigError, match=told):
        Runner.from_cfg(cfg)
    runner = Runner.from_cfg(cfg, work_dir=str(tmp_path / "run"))
    assert runner.members[0].info.name == f"in-{tmp_path}/run"
    runner.train()
    assert (tmp_path / "run/metrics.jsonl").exists()
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    assert written["work_dir"].startswith("${hydra:"), "it is not changed"
    assert Runner.from_cfg(written, work_dir=None, seed=5).seed == 5


def test_keywords_take_the_place_of_what_others_refer_to(composed: Any) -> None:
    cfg = composed("data.data_seed=${seed}", "work_dir=null")
    assert Runner.from_cfg(cfg, seed=7).settings["data"]["data_seed"] == 7
    OmegaConf.set_readonly(cfg, True)
    assert Runner.from_cfg(cfg, seed=8, metric={}, hook={}).settings["metrics"] == {}
    model = Runner.from_cfg(cfg).model
    assert Runner.from_cfg(cfg, model=model).model is model


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.hidden=[${absent}]", r"^model\.hidden.*: '\$\{absent\}' is invalid. .* can be resolved\. .*'absent'"),
        (
            "name=${own:1}",
            r"name: .* is invalid. .*Unsupported interpolation type own. Register .*register_new_resolver",
        ),
        ("name=${hydra:job.name}", r"name: .* is invalid. .*: \$\{hydra:…\} has a value only in a Hydra application"),
    ],
)
def test_an_interpolation_that_does_not_resolve(composed: Any, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Runner.from_cfg(composed(override), work_dir=None)


def test_the_config_of_a_run(composed: Any, tmp_path: Path) -> None:
    """A run's `config.yaml` names the run's own directory."""
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(composed(f"work_dir={tmp_path}/run"), resolve=True))
    Runner.from_cfg(OmegaConf.load(tmp_path / "config.yaml")).train()
    with pytest.raises(ConfigError, match="use resume=true"):
        Runner.from_cfg(OmegaConf.load(tmp_path / "config.yaml")).train()
    Runner.from_cfg(OmegaConf.load(tmp_path / "config.yaml"), work_dir=tmp_path / "other").train()


def test_what_is_no_config_or_no_argument() -> None:
    for given in ("conf/train.yaml", OmegaConf.create([1]), None):
        with pytest.raises(ConfigError, match=r"^cfg: "):
            Runner.from_cfg(given)
    with pytest.raises(ConfigError, match="Did you mean 'work_dir'"):
        Runner.from_cfg(CFG, work_dirr=None)
    for directory in (3, "", " "):
        with pytest.raises(ConfigError, match=r"work_dir: .* is invalid. Expected the path of a directory"):
            Runner.from_cfg(CFG, work_dir=directory)
