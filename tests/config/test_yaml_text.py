"""YAML that is written fast is that of OmegaConf."""

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from trainyard.config.yaml_text import yaml_text

CONF = Path(__file__).parents[2] / "conf"


class Colour(Enum):
    """Value that YAML does not know."""

    RED = 1


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_config(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    assert repr(yaml.safe_load(yaml_text(values))) == repr(yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create(values))))


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 1e-7, float("inf"), "1e3", "on", "", "a: b", "two\nlines", "é", [], {}, {"a": [{"b": None}]}],
)
def test_values_keep_their_types(value: Any) -> None:
    text = yaml_text({"key": value})
    assert text == OmegaConf.to_yaml(OmegaConf.create({"key": value}))
    assert OmegaConf.to_container(OmegaConf.create(text)) == {"key": value}


def test_an_enum_is_its_name() -> None:
    assert yaml_text({"key": Colour.RED, "keys": (Colour.RED,)}) == "key: RED\nkeys:\n- RED\n"
