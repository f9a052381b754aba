"""Params are what was chosen and what is not a default."""

from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from trainyard.config.current_job import current_job
from trainyard.run.params import chosen
from trainyard.run.record import DEFAULTS, NOT_PARAMS, describe


def params(*overrides: str) -> dict[str, str]:
    with initialize_config_module("conf", version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("train", [*overrides, "work_dir=here"]), resolve=True)
    named = [override.partition("=")[0] for override in overrides]
    return chosen({key: value for key, value in values.items() if key not in NOT_PARAMS}, named, DEFAULTS)


def test_a_run_without_choices_has_few(hydra_restore_singletons: Any) -> None:
    found = params()
    assert found["optim.lr"] == "0.001"
    assert {"seed", "data.batch_size", "loop.max_epochs", "objective"} <= found.keys()
    assert len(found) <= 12
    assert not [key for key, value in found.items() if "._" in key or value in ("None", "auto", "{}")]


def test_what_is_chosen_is_there_even_as_a_default(hydra_restore_singletons: Any) -> None:
    given = ("optim.weight_decay=0", "clip_grad_norm=null", "model.dropout=0.5", "env.deterministic=false")
    found = params(*given)
    assert found.keys() - params().keys() == {override.partition("=")[0] for override in given}
    assert (found["clip_grad_norm"], found["model.dropout"]) == ("None", "0.5")


def test_what_differs_from_a_default_of_its_class_is_there() -> None:
    optim = {"_target_": "torch.optim.Adam", "_partial_": True, "betas": [0.9, 0.999], "eps": 1e-7, "amsgrad": None}
    assert chosen({"optim": optim}, [], {}) == {"optim.eps": "1e-07"}
    assert chosen({"model": {"_target_": "no.such.class", "depth": 3, "head": {"width": 2}}}, [], {}) == {
        "model.depth": "3",
        "model.head.width": "2",
    }


def test_several_options_of_a_group_are_one_param(hydra_restore_singletons: Any) -> None:
    given = ["hook=[ema,nan_guard]", "hook.ema.decay=0.99", "work_dir=here"]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", given, return_hydra_config=True)
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    with current_job(config):
        found = describe(values, {}).params
    assert (found["hook"], found["hook.ema.decay"]) == ("[ema,nan_guard]", "0.99")
    assert not [key for key in found if "._" in key or key == "hook.ema.begin"]
