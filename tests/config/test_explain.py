"""Hydra's complaints, in our words: what composing raises, explained."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.config.explain import explain
from trainyard.config.hydra_versions import IS_14, VERSION_BASE
from trainyard.config.places import ConfigPlaces
from trainyard.config.sweepers import SETTINGS

CONF = str(Path(__file__).parents[2] / "conf")
PLACES = ConfigPlaces(CONF, "train")


def told(*overrides: Any) -> Any:
    """What is said of a command with these overrides."""
    with pytest.raises(Exception) as raised, initialize_config_dir(CONF, **VERSION_BASE):  # noqa: PT011 - Hydra has many
        compose("train", overrides=["tracker=none", *overrides])
    explained = explain(raised.value, ["tracker=none", *overrides], PLACES)
    return None if explained is None else str(explained)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=mpl"], "model: 'mpl' is invalid. Expected one of cnn, lightning, mlp, resnet, timm, torchvision, "),
        (["model=mpl"], "Did you mean 'mlp'?"),
        (["hook=[default,emma]"], "hook: 'emma' is invalid. Expected one of default, detection_log, early_stop, ema, "),
        (["model="], "model: '' is invalid. Expected one of cnn, lightning, mlp, resnet, timm, torchvision, "),
        (["model=null"], "model: None is invalid. Expected one of cnn, lightning, mlp, resnet, timm, torchvision, "),
        (["metric=null"], "regression. To select none, pass '~metric'."),
        (["tracker=null"], "tracker: None is invalid. Expected one of mlflow, none. Did you mean 'none'?"),
        (["seed=3", "optim=0.1"], "optim: 0.1 is invalid. Expected one of adagrad, adam, "),
        (["optm=adam"], "optm: 'optm' is invalid. Expected a group or key of this config. Did you mean 'optim'?"),
        (["optm.lr=1"], "optm.lr: 'optm' is invalid. Expected a group or key of this config. Did you mean 'optim'?"),
        (["optim.lrr=1"], "optim.lrr: 'lrr' is invalid. Expected a key of optim: _target_, _partial_, lr, betas, "),
        (["optim.lrr=1"], "Did you mean 'lr'? To add a new key, use +optim.lrr=…"),
        (["~optim.lrr"], "optim.lrr: 'lrr' is invalid. Expected a key of optim"),
        (["hook.logger.intervall=3"], "Did you mean 'interval'?"),
        (["hook.ema.decay=0.9"], "hook.ema.decay: 'ema' is invalid. Expected a key of hook: progress, runtime_info, "),
        (["hook.ema.decay=0.9"], "ema is an option of hook that is not selected. Use hook=ema to select it."),
        (["hook.chekpoint.by=iter"], "hook.chekpoint.by: 'chekpoint' is invalid. Expected a key of hook"),
        (["hook.chekpoint.by=iter"], "Did you mean 'checkpoint'?"),
        (["hook=[]", "hook.logger.interval=3"], "no key, because hook is empty. hook=default selects logger."),
        (["~metric", "metric.accuracy.k=1"], "metric.accuracy.k: the override ~metric removes metric. Omit one of "),
        (["~hook.logger", "hook.logger.interval=3"], "the override ~hook.logger removes hook.logger. Omit one of"),
        (["schedule=step", "schedule.step_size=3"], "Did you mean schedule.scheduler.step_size?"),
        (["+optim.lr=3"], "optim.lr: the config already has this key. To change its value, use optim.lr=…"),
        (
            ["+hook.x.priority=80", "+hook.x.priority=49"],
            "hook.x.priority: this key is given more than once: +hook.x.priority=80 and +hook.x.priority=49. Keep one",
        ),
        (["+model=cnn"], "+model=cnn: the configs already select an option of model. To select another one, use model"),
        (["+hydra/launcher=basic"], "the configs already select an option of hydra/launcher. To select another one"),
        (["optim.lr=[1"], "'optim.lr=[1' is not a valid override"),
        (
            ["model.data_preprocessor.mean=0"],
            "model.data_preprocessor.mean: model.data_preprocessor is null and has no keys. To select an option, use "
            "+model/data_preprocessor=OPTION. The options are augment, cutmix, mixup, mixup_cutmix, normalize.",
        ),
        (
            ["experiment=cartpole_dqn", "metric.f1.average=macro"],
            "metric.f1.average: metric is null and has no keys. To select an option, use metric=OPTION. The options",
        ),
        (["seed.a.b=1"], "seed.a.b: seed is a single value and has no keys. To change it, use seed=…"),
        (["freeze.a=1"], "freeze.a: freeze is null and has no keys. To change it, use freeze=…"),
        (["optim.betas.a=1"], "optim.betas.a: optim.betas is a list and has no keys. To change it, use optim.betas=…"),
        pytest.param(
            ["~optim.betas.0"],
            "optim.betas.0: optim.betas is a list and has no keys.",
            marks=pytest.mark.skipif(IS_14, reason="Hydra 1.4 removes an entry of a list"),
        ),
        (["data=null"], "To select none, pass '~data'."),
        (["experiment=null"], "To select none, pass '~experiment'."),
        (["hook=null"], "To select none, use hook=[]."),
        (["+note=a,b"], "A list is +note=[a,b]; a string is '+note=\"a,b\"'."),
        (["seed"], "'seed' is not a valid override: it has no value. Expected KEY=VALUE, or ~KEY to remove a key."),
        (["name=(a"], "'name=(a' is not a valid override: a string with these characters must be quoted: 'name=\"(a\""),
        (["name=a\"b"], "is not a valid override: Hydra cannot parse it."),
        (["lr=0.1"], "lr: 'lr' is invalid. Expected a group or key of this config. Did you mean optim.lr?"),
        (["epochs=3"], "Did you mean loop.max_epochs?"),
        (["batch_size=32"], "Did you mean data.batch_size?"),
        (["optim=[1]"], "optim: [1] is invalid. Expected one of adagrad, adam, "),
        (["hydra/sweeper=optuna"], "The option optuna is in a separate package: pip install hydra-optuna-sweeper"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=search uses Optuna's samplers: pip install 'trainyard[search]'"),
        (["model=mlp,cnn"], "model: 'mlp,cnn' is invalid. Expected one value. To train with each value, pass -m."),
        (["hook=default,ema"], "pass -m. To select all of these options, use hook=[default,ema]."),
        (["name=a,b"], "To train with each value, pass -m. A list is name=[a,b]; a string is 'name=\"a,b\"'."),
        (["hydra.job.name=a,b"], "Expected one value. A list is hydra.job.name=[a,b]; a string is 'hydra.job.name="),
        (["optim.lr=interval(0,1)"], "optim.lr: 'interval(0,1)' is invalid. Expected one value. -m starts a sweep."),
        (["optim.lr=interval(0,1)"], "needs a sweeper that samples from it, such as hydra/sweeper=search."),
        (["hook=[]", "hook.logger.interval=5"], "'logger' is invalid. Expected no key, because hook is empty."),
        (["hydra.run.dir=a/lr=1,seed=2"], "characters must be quoted: 'hydra.run.dir=\"a/lr=1,seed=2\"'."),
        (["name=héllo"], "a string with these characters must be quoted: 'name=\"héllo\"'."),
        (["init={a: 1}", "init={b: 2}"], "init: the key 'b' does not exist. A mapping can only change existing keys"),
    ],
)  # fmt: skip
def test_what_was_meant(overrides: Any, message: str) -> None:
    assert message in told(*overrides)


def test_several_values_of_a_key_of_hydras() -> None:
    error = ConfigCompositionException(
        "Sweeping over Hydra's configuration is not supported : 'hydra.launcher.max_jobs=1,2'"
    )
    assert str(explain(error, [], PLACES)).startswith(
        "hydra.launcher.max_jobs: '1,2' is invalid. Expected one value, because hydra keys apply to the entire sweep."
    )


def test_tags_as_the_option_file_names_them() -> None:
    with initialize_config_dir(CONF, **VERSION_BASE):
        for given in ("tracker.tags={team: vision}", "+tracker.tags.team=vision"):
            assert compose("train", overrides=[given]).tracker.tags == {"team": "vision"}


def test_only_one_of_several_overrides_is_wrong() -> None:
    """The others are composed, so that what they choose is what is listed."""
    assert "a key of data: _target_, num_samples, noise, " in told("data=rings", "data.nois=1", "seed=1")


def test_two_overrides_are_wrong() -> None:
    """Without both, the options that the others choose are still listed."""
    assert "a key of model: _target_, in_channels, " in told("model=cnn", "model.aa=1", "model.bb=2")
    given = ("loop.max_epochs=2", "model.hidden=[8]", "experiment=cartpole_dqn")
    assert "a key of loop: _target_, max_iters, " in told(*given)


SWEEP = ["model=mlp,cnn", "optim.lr=tag(log,interval(1e-5,1e-1))"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra/sweeper=search", "hydra.sweeper.n_trails=5"], "a setting of hydra/sweeper=search: sampler, pruner, "),
        (["hydra/sweeper=search", "hydra.sweeper.n_trails=5"], "Did you mean 'n_trials'?"),
        (["hydra/sweeper=pbt", "hydra.sweeper.intervall=5"], "a setting of hydra/sweeper=pbt: population, interval, "),
        (["hydra.sweeper.zipp=[]"], "a setting of hydra/sweeper=grid: pruner, max_batch_size, params, zip, blocks, "),
        (["hydra.launcher.retry=1"], "a setting of hydra/launcher=local: jobs_per_gpu, "),
        (["optim=sgd", "optim.momentun=0.9"], "a key of optim: _target_, _partial_, lr, momentum, "),
    ],
)
def test_of_a_sweep_the_options_that_it_has_chosen_are_listed(overrides: Any, message: str) -> None:
    with pytest.raises(ConfigCompositionException) as raised, initialize_config_dir(CONF, **VERSION_BASE):
        compose("train", overrides=overrides)  # as Hydra does: that of a sweep has not the keys that vary
    explained = str(explain(raised.value, [*overrides, *SWEEP], PLACES))
    assert message in explained
    if "hydra." in overrides[-1]:
        assert "To add a new key, use" not in explained  # the plugin would refuse it


SEARCH, GRID, PBT = ("search", "grid", "pbt")


@pytest.mark.parametrize(
    ("option", "override", "message"),
    [
        (SEARCH, "hydra.sweeper.storage=sqlite:///a.db", "A search is stored in the directory of its sweep."),
        (SEARCH, "hydra.sweeper.study_name=a", "A search is identified by the directory of its sweep, hydra."),
        (SEARCH, "hydra.sweeper.max_failure_rate=1", "A failed trial does not end a search, unless hydra.launch"),
        (SEARCH, "hydra.sweeper.search_space={}", "Pass the ranges of a search as overrides, on the command line or"),
        (SEARCH, "hydra.sweeper.custom_search_space=a.b", "Use hydra.sweeper.when for the conditional keys of"),
        (SEARCH, "hydra.sweeper.max_batch_size=3", "learn_from. Trials start as slots become free."),
        (SEARCH, "hydra.sweeper.seed=3", "learn_from. The seed of a search is hydra.sweeper.sampler.seed."),
        (SEARCH, "hydra.sweeper.interval=3", "learn_from. interval is a setting of hydra/sweeper=pbt."),
        (SEARCH, "hydra.sweeper.sampler.constraints_func=a.b", "constant_liar. Use hydra.sweeper.constraints."),
        (SEARCH, "hydra/sweeper/sampler=motpe", "qmc, random, tpe. hydra/sweeper/sampler=tpe also supports several"),
        (SEARCH, "hydra/sweeper/sampler=grid", "hydra/sweeper=grid runs every combination of the values."),
        (GRID, "hydra.sweeper.storage=sqlite:///a.db", "To search, use hydra/sweeper=search. A search is stored in"),
        (GRID, "hydra.sweeper.study_name=a", "To search, use hydra/sweeper=search. A search is identified by the"),
        (GRID, "hydra.sweeper.n_trials=3", "order. n_trials is a setting of hydra/sweeper=search."),
        (GRID, "hydra.sweeper.n_jobs=3", "order. n_jobs is a setting of hydra/sweeper=search."),
        (GRID, "hydra.sweeper.sampler.seed=3", "order. sampler is a setting of hydra/sweeper=search."),
        (GRID, "hydra/sweeper/sampler=tpe", "a group of hydra/sweeper=grid: pruner. sampler is a setting of hydra/"),
        (PBT, "hydra.sweeper.n_trials=3", "params. n_trials is a setting of hydra/sweeper=search."),
        (PBT, "hydra.sweeper.order=job", "order is a setting of hydra/sweeper=grid and hydra/sweeper=search."),
        (PBT, "hydra/sweeper/pruner=asha", "no group, because pbt has none. pruner is a setting of hydra/sweeper=grid"),
    ],
)  # fmt: skip
def test_what_replaces_a_setting_of_another_sweeper_is_told(option: str, override: str, message: str) -> None:
    overrides = [f"hydra/sweeper={option}", override]
    with pytest.raises(HydraException) as raised, initialize_config_dir(CONF, **VERSION_BASE):
        compose("train", overrides=overrides)
    explained = str(explain(raised.value, [*overrides, *SWEEP], PLACES))
    assert message in explained
    assert "Did you mean" not in explained
    assert "To add a new key" not in explained


@pytest.mark.parametrize("option", SETTINGS)
def test_the_settings_of_a_sweeper_are_those_of_its_option(option: str) -> None:
    with initialize_config_dir(CONF, **VERSION_BASE):
        own = compose("train", overrides=[f"hydra/sweeper={option}"], return_hydra_config=True).hydra.sweeper
    assert {key for key in own if not key.startswith("_")} == {*SETTINGS[option]}


def test_what_is_none_of_hydras_is_left_alone() -> None:
    for error in (ZeroDivisionError(), KeyError("x"), ValueError("mine")):
        assert explain(error, [], PLACES) is None
    assert explain(ValueError("mine"), ["model=cnn,mlp", "~metric"], PLACES) is None, "both are valid"
    assert explain(ConnectionRefusedError(111, "Connection refused"), [], PLACES) is None


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as raised:
        (tmp_path / "file/run").mkdir()
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        assert str(explain(raised.value, [], PLACES, key)) == (
            f"{key}: '{tmp_path}/file/run' is invalid. Expected a writable directory. Not a directory."
        )


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(OSError, match="No such file") as raised:
        (tmp_path / "absent.txt").read_text()
    assert str(explain(raised.value, [], PLACES)) == f"{tmp_path}/absent.txt: No such file or directory."


def test_a_launcher_that_cannot_be_built() -> None:
    with initialize_config_dir(CONF, **VERSION_BASE):
        cfg = compose("train", overrides=["hydra.launcher._target_=abc"], return_hydra_config=True)
        with pytest.raises(RuntimeError) as raised:
            Plugins.instance().instantiate_launcher(hydra_context=None, task_function=print, config=cfg)
    said = ("Invalid plugin 'abc': not the hydra_plugins package.", "Unknown plugin class : 'abc'.")  # Hydra 1.3, 1.4
    told = str(explain(raised.value, [], PLACES))
    assert told in [f"hydra.launcher: Hydra cannot build this config. {each}" for each in said]


def test_a_primary_config_in_the_folder_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/mine.yaml").touch()
    with pytest.raises(ConfigCompositionException) as raised, initialize_config_dir(CONF, **VERSION_BASE):
        compose("mine")
    explained = str(explain(raised.value, [], ConfigPlaces(CONF, "mine")))
    assert explained.endswith("To use conf/mine.yaml, also pass --config-path conf.")


def test_a_primary_config_that_does_not_exist() -> None:
    with pytest.raises(ConfigCompositionException) as raised, initialize_config_dir(CONF, **VERSION_BASE):
        compose("trian")
    assert str(explain(raised.value, [], ConfigPlaces(CONF, "trian"))) == (
        f"--config-name: 'trian' is invalid. Expected a config in {CONF}: train. Did you mean 'train'?"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "{file} contains a list. Expected a mapping of keys to values."),
        (
            "defaults: [train, _self_, {override hydra/sweeper: optuna}]\n",
            "pip install 'trainyard[search]'. The defaults list of {file} contains this name.",
        ),
    ],
)
def test_a_fault_in_the_primary_config(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(HydraException) as raised, initialize_config_dir(str(tmp_path), **VERSION_BASE):
        compose("mine")
    assert message.format(file=file) in str(explain(raised.value, [], ConfigPlaces(str(tmp_path), "mine")))


def test_a_misspelled_group_in_a_defaults_list(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train, {modle: cnn}]\n")
    with pytest.raises(MissingConfigException) as raised, initialize_config_dir(str(tmp_path), **VERSION_BASE):
        compose("mine")
    explained = str(explain(raised.value, [], ConfigPlaces(str(tmp_path), "mine")))
    assert explained.endswith("Did you mean the group 'model'?")


@pytest.mark.parametrize(
    ("override", "way"),
    [
        ("++hook=[ema]", "'hook=[ema]'"),
        ("++experiment=beginner", "experiment=beginner"),
        ("++model/data_preprocessor=normalize", "+model/data_preprocessor=normalize"),
    ],
)
def test_an_option_that_is_added_by_force(override: str, way: str) -> None:
    with pytest.raises(ConfigCompositionException) as raised, initialize_config_dir(CONF, **VERSION_BASE):
        compose("train", overrides=[override])
    assert str(explain(raised.value, [override], PLACES)) == (
        f"{override}: ++ cannot select an option of a group. To select this option, use {way}"
    )


def test_a_fault_in_a_config_file_is_no_fault_of_an_override(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/wrong.yaml").write_text("# @package _global_\ndefaults: [override /modle: cnn]\n")
    overrides = ["experiment=wrong", f"hydra.searchpath=[file://{tmp_path}]"]
    with pytest.raises(ConfigCompositionException) as raised, initialize_config_dir(CONF, **VERSION_BASE):
        compose("train", overrides=overrides)
    explained = str(explain(raised.value, overrides, PLACES))
    assert explained.startswith(
        "experiment/wrong.yaml: override: 'modle' is invalid. Expected a group that the configs"
    )
    assert explained.endswith("Did you mean 'model'?")


def test_an_override_of_a_group_that_no_config_selects(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train, override model/data_preprocessor: normalize]\n")
    with pytest.raises(ConfigCompositionException) as raised, initialize_config_dir(str(tmp_path), **VERSION_BASE):
        compose("mine")
    explained = str(explain(raised.value, [], ConfigPlaces(str(tmp_path), "mine")))
    assert explained.endswith("To select an option of it, write /model/data_preprocessor without override.")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("override modle: cnn", "override: 'modle' is invalid. Expected a group that the configs select: data, env"),
        ("override modle: cnn", "Did you mean 'model'?"),
        ("override hydra/sweper: grid", "Did you mean 'hydra/sweeper'?"),
    ],
)
def test_an_override_of_a_misspelled_group_in_the_primary_config(key: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults: [train, {{{key}}}]\n")
    with pytest.raises(ConfigCompositionException) as raised, initialize_config_dir(str(tmp_path), **VERSION_BASE):
        compose("mine")
    assert message in str(explain(raised.value, [], ConfigPlaces(str(tmp_path), "mine")))


def test_an_override_of_a_misspelled_group_in_a_complete_primary_config(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [{model: mlp}, {override modle: cnn}]\n")
    with pytest.raises(ConfigCompositionException) as raised, initialize_config_dir(str(tmp_path), **VERSION_BASE):
        compose("mine")
    explained = str(explain(raised.value, [], ConfigPlaces(str(tmp_path), "mine")))
    assert "hydra/sweeper, model. Did you mean 'model'?" in explained


def test_an_interpolation_of_hydras_own_keys() -> None:
    config = OmegaConf.create({"hydra": {"run": {"dir": "${nowhere}"}}})
    with pytest.raises(OmegaConfBaseException) as raised:
        _ = config.hydra.run.dir
    assert str(explain(raised.value, [], PLACES)) == "hydra.run.dir: Interpolation key 'nowhere' not found."
