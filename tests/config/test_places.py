"""Places of the configs of a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainyard.config.places import ConfigPlaces
from trainyard.errors import ConfigError
from trainyard.run.rank_job import _composed

CONF = str(Path(__file__).parents[2] / "conf")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a primary config and an option."""
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/mine.yaml").write_text("defaults: [train, _self_]\nseed: 7\nwork_dir: null\n")
    (tmp_path / "own/model/tiny.yaml").write_text("defaults: [mlp]\nhidden: [3]\n")
    return tmp_path / "own"


def test_places_of_a_command(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ConfigPlaces.of_command(["seed=1"], CONF, "train") == ConfigPlaces(CONF, "train")
    given = ConfigPlaces.of_command(["-cp", str(own), "-cn", "mine", "--config-dir", "own", "seed=1"], CONF, "train")
    assert given == ConfigPlaces(str(own), "mine", str(own), is_given=True)
    assert given.folders == [own, own]


def test_options_of_all_places(own: Path) -> None:
    assert {"mlp", "tiny"} <= {*ConfigPlaces(str(own), "mine").options("model")}
    assert {"mlp", "tiny"} <= {*ConfigPlaces(CONF, "train", str(own)).options("model")}
    assert "tiny" not in ConfigPlaces(CONF, "train").options("model")


@pytest.mark.parametrize("where", ["override", "primary"])
def test_places_of_the_search_path(own: Path, tmp_path: Path, where: str) -> None:
    line = f"[file://{own}, pkg://trainyard/config, pkg://mine.conf, file:///nowhere]"
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/top.yaml").write_text(
        "hydra: {}\n" if where == "override" else f"hydra: {{searchpath: {line}}}\n"
    )
    overrides = [f"hydra.searchpath={line}"] if where == "override" else []
    places = ConfigPlaces.of_command(overrides, str(tmp_path / "conf"), "top")
    assert places.searched == (str(own), "pkg://trainyard/config"), "without those that do not exist, as in Hydra"
    assert places.folders == [tmp_path / "conf", own]
    found = places.find("model/tiny")
    assert found is not None
    assert found.path == own / "model/tiny.yaml"
    assert places.find("model/absent") is None
    assert "tiny" in places.options("model")


def test_the_first_override_of_the_search_path_counts(own: Path, tmp_path: Path) -> None:
    """As in Hydra, which ignores one with a `+`."""
    override = f"hydra.searchpath=[file://{own}]"
    given = [f"+hydra.searchpath=[file://{tmp_path}]", override, f"hydra.searchpath=[file://{tmp_path}]", "model=tiny"]
    places = ConfigPlaces.of_command(given, CONF, "train")
    assert places.searched == (str(own),)
    assert places.compose(given[1:]).model
    assert ConfigPlaces.of_command(given[:1], CONF, "train").searched == ()


def test_the_search_path_beside_an_added_folder(own: Path, tmp_path: Path) -> None:
    (tmp_path / "more/data").mkdir(parents=True)
    (tmp_path / "more/data/few.yaml").write_text("defaults: [rings]\nnum_samples: 20\n")
    overrides = [f"hydra.searchpath=[file://{tmp_path}/more]", "model=tiny", "data=few"]
    places = ConfigPlaces.of_command(["--config-dir", str(own), *overrides], CONF, "train")
    assert places.compose(overrides).data.num_samples == 20


def test_places_of_a_composed_config(own: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    sources = [
        {"path": "hydra.conf", "schema": "pkg", "provider": "hydra"},
        {"path": CONF, "schema": "file", "provider": "main"},
        {"path": str(own), "schema": "file", "provider": "command-line"},
        {"path": str(more), "schema": "file", "provider": "hydra.searchpath in command-line"},
        {"path": "trainyard/config", "schema": "pkg", "provider": "hydra.searchpath in command-line"},
        {"path": "/nowhere", "schema": "file", "provider": "hydra.searchpath in command-line"},
        {"path": "", "schema": "structured", "provider": "schema"},
    ]
    hydra = {"runtime": {"config_sources": sources}, "job": {"config_name": "train"}}
    searched = (str(more), "pkg://trainyard/config")
    assert ConfigPlaces.of_composed(hydra) == ConfigPlaces(CONF, "train", str(own), searched=searched)


def test_an_added_folder_with_special_characters_in_its_name(own: Path, tmp_path: Path) -> None:
    added = own.rename(tmp_path / "a, [b]='c' \"d\"")
    assert ConfigPlaces(CONF, "train", str(added)).compose(["model=tiny"]).model


def test_a_folder_of_the_program_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^config_path: '.*/nowhere' is invalid. Expected the path of an existing"):
        ConfigPlaces(str(tmp_path / "nowhere"), "train").check()
    ConfigPlaces(str(tmp_path), "train").check()  # the primary config is Trainyard's


@pytest.mark.parametrize(
    "arguments", [["-cp", "{own}", "-cn", "mine"], ["--config-dir", "{own}", "seed=7", "model=tiny"]]
)
def test_every_rank_composes_the_config_of_the_command(
    own: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [argument.format(own=own) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["train.py", *given])
    composed = _composed(ConfigPlaces.of_command(given, CONF, "train"))
    assert composed is not None
    assert composed.seed == 7
