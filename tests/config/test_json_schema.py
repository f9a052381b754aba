"""JSON schemas of configs: what they say of each option, and the files and lines that carry them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from trainyard.config.json_schema import WHOLE, comments_of, of_group, targets
from trainyard.config.schema_files import MODELINE, name_of, put_modelines, schemas, write

CONF = Path(__file__).parents[2] / "conf"


class Mine:
    """A class of the user's.

    Further words.

    Args:
        width: of the hidden layer,
            in numbers.
        kind: how.
        rates, names: of each.
    """

    def __init__(
        self,
        width: int,
        kind: Literal["a", "b"] | None = None,
        rates: Sequence[float] = (),
        names: Mapping[str, str] | None = None,
        part: Any = None,
        *,
        on: bool = True,
    ) -> None: ...


def takes_more(width: int, **rest: Any) -> None:
    """Take whatever comes."""


def of(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("trainyard.config.json_schema.locate", lambda path, _: globals()[path.rpartition(".")[2]])
    return of_group("model", [f"{__name__}.{name}"])["definitions"][f"{__name__}.{name}"]


def test_types_descriptions_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    found = of("Mine", monkeypatch)
    assert found["description"] == "A class of the user's."
    properties = found["properties"]
    assert properties["width"]["description"] == "of the hidden layer, in numbers."
    assert properties["width"]["anyOf"][0] == {"type": "integer"}
    assert {"enum": ["a", "b"]} in properties["kind"]["anyOf"]
    assert {"type": "null"} in properties["kind"]["anyOf"]
    assert properties["kind"]["default"] is None
    assert properties["rates"]["anyOf"][0]["items"]["anyOf"][0] == {"type": "number"}
    assert properties["names"]["description"] == properties["rates"]["description"] == "of each."
    assert properties["part"]["$ref"] == "#/definitions/value"
    assert properties["on"] == {"anyOf": [{"type": "boolean"}, properties["width"]["anyOf"][1]], "default": True}
    assert found["additionalProperties"] is False


def test_a_target_that_takes_any_argument_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "additionalProperties" not in of("takes_more", monkeypatch)


def test_a_target_that_cannot_be_imported_is_told_and_left_open() -> None:
    told: list[str] = []
    found = of_group("model", ["nowhere.at.all"], told.append)
    assert told[0].startswith("nowhere.at.all was not checked: ")
    assert "nowhere.at.all" not in found["definitions"]


def test_every_argument_of_our_options_is_known() -> None:
    """What a training would refuse, an editor marks; what it takes, is not marked."""
    told: list[str] = []
    found = schemas([CONF], told.append)
    assert all("pip install 'trainyard[" in line for line in told), "only what an extra installs may be missing"
    for file in sorted(CONF.glob("[!h]*/*.yaml")):
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        definitions = found[name_of(file, CONF)]["definitions"]
        for node in nodes(content):
            if node["_target_"] not in definitions:  # such as that of a library that is not installed
                continue
            properties = definitions[node["_target_"]]["properties"]
            assert node.keys() <= properties.keys() or "additionalProperties" not in definitions[node["_target_"]], file
    assert found[WHOLE]["properties"]["seed"]["description"].startswith("Seed of all random choices")
    json.dumps(found, allow_nan=False)


def nodes(content: Any) -> list[Any]:
    below = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    own = [content] if isinstance(content, dict) and "_target_" in content else []
    return [*own, *(node for entry in below for node in nodes(entry))]


def test_every_config_names_the_schema_of_its_group(tmp_path: Path) -> None:
    """`trainyard schema --modelines` puts the line there."""
    for file in CONF.rglob("*.yaml"):
        if file.relative_to(CONF).parts[0] != "hydra":
            (line,) = [line for line in file.read_text().splitlines() if line.startswith(MODELINE)]
            named = (file.parent / line.removeprefix(MODELINE)).resolve()
            assert named == CONF.parent / "schemas" / f"{name_of(file, CONF)}.json", file


def test_lines_are_put_once_and_behind_what_hydra_reads(tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "metric").mkdir()
    (tmp_path / "conf" / "model" / "own.yaml").write_text("# A model.\n_target_: own.Model\n")
    (tmp_path / "conf" / "metric" / "own.yaml").write_text("# @package _global_\nmetric: {}\n")
    for changed in (2, 0):
        assert len(put_modelines(tmp_path / "conf", tmp_path / "schemas")) == changed
    assert (tmp_path / "conf" / "model" / "own.yaml").read_text().splitlines() == [
        f"{MODELINE}../../schemas/model.json",
        "# A model.",
        "_target_: own.Model",
    ]
    assert (tmp_path / "conf" / "metric" / "own.yaml").read_text().splitlines()[:2] == [
        "# @package _global_",
        f"{MODELINE}../../schemas/train.json",
    ]
    headers = "\n#  @package  _global_\n# @other x\n"
    (tmp_path / "conf" / "metric" / "own.yaml").write_text(f"{headers}\n# A metric.\nmetric: {{}}\n")
    assert len(put_modelines(tmp_path / "conf", tmp_path / "schemas")) == 1
    line = f"{MODELINE}../../schemas/train.json\n"
    assert (tmp_path / "conf" / "metric" / "own.yaml").read_text() == f"{headers}{line}\n# A metric.\nmetric: {{}}\n"
    files = write({"model": {}, "model/inner": {}}, tmp_path / "schemas")
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "schemas/model.json",
        "schemas/model/inner.json",
    ]


def test_targets_and_comments() -> None:
    assert list(targets({"a": {"_target_": "x.Y", "b": [{"_target_": "x.Z"}]}, "c": 1})) == ["x.Y", "x.Z"]
    assert comments_of("# One\n# line.\na: 1\nb: 2\n\n# Other.\n\nc: 3\n") == {"a": "One line."}
