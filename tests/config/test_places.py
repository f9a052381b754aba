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
