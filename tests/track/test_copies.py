"""Copies for TensorBoard and W&B, made of a journal by the shipper; a killed shipper makes no point twice."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import ConfigError
from trainyard.track import Journal, MLflowTracker, RunInfo, own
from trainyard.track.shipper.copies import FILE, Copies
from trainyard.track.shipper.fleet import Fleet


def journaled(work_dir: Path, *steps: int) -> None:
    with Journal(work_dir) as journal:
        for step in steps:
            journal.metrics(step, {"train/loss": 1 / step, "lr": 0.5})


def begun(work_dir: Path, copies: list[str], **more: Any) -> RunInfo:
    work_dir.mkdir(exist_ok=True)
    info = own.marked(RunInfo(name="mine", copies=copies, params={"optim.lr": "0.1"}, **more), work_dir)
    info.write(work_dir)
    return info


def points(work_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = loading.EventAccumulator(str(work_dir / "tensorboard")).Reload()
    return {
        tag: [(each.step, round(each.value, 4)) for each in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }


def steps(count: int) -> dict[str, list[tuple[int, float]]]:
    every = range(1, count + 1)
    return {"train/loss": [(step, round(1 / step, 4)) for step in every], "lr": [(step, 0.5) for step in every]}


def fail(text: str) -> None:
    raise AssertionError(text)


def test_tensorboard_has_each_point_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (the extra of this name has it)")
    info = begun(tmp_path / "run", ["tensorboard"])
    journaled(tmp_path / "run", 1, 2)
    Copies(tmp_path / "run", info, fail).step(False)
    assert points(tmp_path / "run") == steps(2)
    before = (tmp_path / "run" / FILE).read_bytes()
    journaled(tmp_path / "run", 3)
    Copies(tmp_path / "run", info, fail).step(False)
    assert points(tmp_path / "run") == steps(3)
    (tmp_path / "run" / FILE).write_bytes(before)  # as though it had been killed before it recorded its position
    Copies(tmp_path / "run", info, fail).step(False)
    Copies(tmp_path / "run", info, fail).step(True)
    assert points(tmp_path / "run") == steps(3)
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    Copies(tmp_path / "run", info, fail).step(True)
    assert points(tmp_path / "run") == steps(3)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    journaled(tmp_path / "run", 1)
    Copies(tmp_path / "run", info, fail).step(True)
    assert points(tmp_path / "run") == steps(1)


def test_the_fleet_makes_them_of_own_runs_alone(uri: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (the extra of this name has it)")
    begun(tmp_path / "run", ["tensorboard"], uri=uri, experiment="trainyard")
    journaled(tmp_path / "run", 1, 2)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    fleet = Fleet()
    for name in ("run", "copy"):
        fleet.open(tmp_path / name)
    fleet.round()
    fleet.leave()
    assert points(tmp_path / "run") == steps(2)
    assert not (tmp_path / "copy" / "tensorboard").exists()


def test_what_fails_is_told_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (the extra of this name has it)")
    info = begun(tmp_path / "run", ["tensorboard"])
    journaled(tmp_path / "run", 1)
    (tmp_path / "run" / "tensorboard").write_text("no folder")
    told: list[str] = []
    copies = Copies(tmp_path / "run", info, told.append)
    copies.step(False)
    copies.step(True)
    assert [text.partition(":")[0] for text in told] == ["tensorboard"]


def test_wandb_has_the_run_once_it_ends(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (the extra of this name has it)")
    info = begun(tmp_path / "run", ["wandb=offline"])
    journaled(tmp_path / "run", 1, 2)
    copies = Copies(tmp_path / "run", info, fail)
    copies.step(False)
    assert not (tmp_path / "run" / "wandb").exists()
    copies.step(True)
    copies.step(True)
    journaled(tmp_path / "run", 3)
    Copies(tmp_path / "run", info, fail).step(True)
    (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{info.id}.wandb")
    assert file.read_bytes().count(b"train/loss") >= 3


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_told_before_the_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, name)
    given: dict[str, Any] = {"tensorboard": True} if name == "tensorboard" else {"wandb": "offline"}
    with pytest.raises(ConfigError, match=rf"{name}: .*not installed.*pip install 'trainyard\[{name}\]'"):
        MLflowTracker(f"sqlite:///{os.devnull}.db", **given)


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match=r"wandb: 'online' is invalid. Expected offline, or null"):
        MLflowTracker(wandb="online")
    with pytest.raises(ConfigError, match="tensorboard: 'yes' is invalid"):
        MLflowTracker(tensorboard="yes")
