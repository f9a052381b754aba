"""Both versions of Hydra, seen from the code that is the same for both."""

import logging
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from trainyard.config.build import build, check_tree, fill_auto
from trainyard.config.hydra_versions import VERSION_BASE, any_target, configure_log, instantiate
from trainyard.config.resolving import resolve
from trainyard.errors import ConfigError

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}


@dataclass
class Schema:
    """A config of a user, with a tuple, which OmegaConf 2.3 makes a list of."""

    _target_: str = "builtins.dict"
    betas: tuple[float, float] = (0.9, 0.99)
    layers: tuple[Any, Any] = field(default_factory=lambda: (dict(LINEAR), {"num_classes": "auto"}))


@pytest.fixture
def node() -> Any:
    return OmegaConf.structured(Schema)


def test_nothing_warns(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("a: {_target_: builtins.dict, b: '${c}'}\nc: 1\n")
    with warnings.catch_warnings(), initialize_config_dir(str(tmp_path), **VERSION_BASE):
        warnings.simplefilter("error")
        config = compose("train")
        assert instantiate(config.a) == {"b": 1}
        with any_target():
            configure_log(
                OmegaConf.create(
                    {"version": 1, "disable_existing_loggers": False, "root": {"level": logging.getLogger().level}}
                )
            )


def test_a_tuple_in_a_config_is_built_checked_and_filled(node: Any) -> None:
    made = build(node, "x")
    assert list(made["betas"]) == [0.9, 0.99]
    assert type(made["layers"][0]).__name__ == "Linear"
    assert fill_auto(node, "x", {"num_classes": 3})["layers"][1] == {"num_classes": 3}
    node.layers[0].in_feature = 2
    with pytest.raises(ConfigError, match=r"^x\.layers\.0: 'in_feature' is invalid"):
        check_tree(node, "x")


def test_a_tuple_of_python_is_too() -> None:
    layers = build({"_target_": "builtins.dict", "layers": (LINEAR, 3)}, "x")["layers"]
    assert (type(layers[0]).__name__, layers[1]) == ("Linear", 3)


def test_a_tuple_of_a_schema_resolves(tmp_path: Path) -> None:
    ConfigStore.instance().store(group="with_tuple", name="base", node=Schema)
    (tmp_path / "train.yaml").write_text("defaults: [with_tuple: base]\n")
    with initialize_config_dir(str(tmp_path), **VERSION_BASE):
        config = compose("train", ["with_tuple.betas=[0.5,0.6]"])
    assert list(resolve(config)["with_tuple"]["betas"]) == [0.5, 0.6]
