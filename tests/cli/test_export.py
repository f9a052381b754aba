"""`trainyard export`."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import trainyard as package
from trainyard.catalog import StoredRun
from trainyard.cli.export import card
from trainyard.errors import TrainyardError
from trainyard.track import RunInfo


def run_of(folder: Path) -> Path:
    (found,) = folder.glob("outputs/*/*/run.json")
    return found.parent


def test_what_is_exported_predicts_as_the_run_does(trainyard: Any, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the extra safetensors")
    status, text, said = trainyard("export", run_of(trained), "--to", tmp_path / "out", cwd=trained)
    assert status == 0, said
    assert [Path(line).name for line in text.split()] == ["model.safetensors", "config.yaml", "README.md"]
    inputs = torch.randn(4, 2)
    own = package.load(run_of(trained), device="cpu").predict(inputs)
    with pytest.raises(TrainyardError, match=r"a folder of `trainyard export`.* Pass trust=True"):
        package.load(tmp_path / "out", device="cpu")
    assert torch.equal(package.load(tmp_path / "out", device="cpu", trust=True).predict(inputs), own)
    assert trainyard("export", run_of(trained), "--to", tmp_path / "out", cwd=trained)[0] == 2, "it is not overwritten"


def test_no_code_of_a_directory_from_elsewhere_is_executed(trainyard: Any, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the extra safetensors")
    run = shutil.copytree(run_of(trained), tmp_path / "run")
    (run / "config.yaml").write_text("model:\n  _target_: theirs.executed_by_export\n")
    status, _, said = trainyard("export", run, "--to", tmp_path / "out", cwd=trained)
    assert status == 0, said


def test_without_the_library_the_extra_is_named(
    trainyard: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    status, _, said = trainyard("export", run_of(trained), "--to", tmp_path / "out", cwd=trained)
    assert status == 2
    assert "pip install 'trainyard[safetensors]'" in said
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_was_trained_and_reached(trained: Path) -> None:
    directory = run_of(trained)
    text = card(StoredRun(directory, RunInfo.read(directory)), "best.pt")
    for part in (
        "| model | mlp |",
        "| data | rings |",
        "| checkpoint | best.pt |",
        "| val/accuracy | 0.",
        "loop.max_epochs=2",
    ):
        assert part in text


def test_the_card_of_a_run_without_validation_names_no_split(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_of(trained), tmp_path / "run")
    stored = StoredRun(run, RunInfo.read(run))
    assert "The metrics of `val` were measured at iteration" in card(stored, "best.pt")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("objective: val/accuracy", "objective: train/loss"))
    stored = StoredRun(run, RunInfo.read(run))
    assert stored.objective == "train/loss"
    assert "were measured" not in card(stored, "best.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "bst.pt"], "Did you mean 'best.pt'"),
        (["--to", "multirun"], "a folder that is empty, or does not exist yet"),
    ],
)
def test_what_cannot_be_is_told(
    trainyard: Any, trained: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, _, said = trainyard("export", run_of(trained), "--to", tmp_path / "out", *arguments, cwd=trained)
    assert status == 2
    assert message in said
    assert not (tmp_path / "out").exists()


def test_without_a_config_the_checkpoint_for_a_runner_is_named(trainyard: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of(trained), run, ignore=shutil.ignore_patterns("config.yaml"))
    status, _, said = trainyard("export", run, "--to", tmp_path / "out", cwd=trained)
    assert status == 2
    assert "has no readable config.yaml" in said
    assert f"pass load_from={str(run / 'checkpoints' / 'best.pt')!r} to the Runner" in said
