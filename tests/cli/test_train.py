"""`trainyard train`: the training command, from any folder."""

import json
import os
import sys
from pathlib import Path

import forked
import pytest
from waiting import LIMIT

from trainyard.train import config_folder

ROOT = Path(__file__).parents[2]
QUICK = ["data=rings", "data.num_samples=300", "loop.max_epochs=1", "model.hidden=[8]", "tracker=none"]


def test_own_configs_come_before_those_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_folder().resolve() == ROOT / "conf"
    (tmp_path / "conf").mkdir()  # another program's
    assert config_folder().resolve() == ROOT / "conf"
    (tmp_path / "conf" / "train.yaml").touch()
    assert config_folder().resolve() == tmp_path / "conf"


def test_a_sweep_records_the_module_so_that_it_can_be_resumed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainyard", "train", "-m", *QUICK, "seed=0,1"]
    done = forked.run(command, cwd=tmp_path, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    manifest = next(tmp_path.glob("multirun/*/*/manifest.jsonl"))
    modules = [line["module"] for line in map(json.loads, manifest.read_text().splitlines()) if line.get("module")]
    assert modules == ["trainyard.train"]
    resume = [sys.executable, "-m", "trainyard", "sweep", "resume", str(manifest.parent)]
    done = forked.run(resume, cwd=tmp_path, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert "2 already done; 0 to run" in done.stdout


def test_classes_in_the_current_folder_are_found(tmp_path: Path) -> None:
    """The installed command is a program in another folder, which is where Python looks by itself."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "trainyard").write_text("from trainyard.cli import main\nmain()\n")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "only_mine.py").write_text("from trainyard.models import MLP\n\n\nclass Net(MLP): ...\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "bin" / "trainyard"), "train", *QUICK, "model._target_=only_mine.Net"]
    done = forked.run([*command, "hydra.run.dir=r"], cwd=tmp_path / "here", env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert "Net with" in done.stdout


@pytest.mark.parametrize(("arguments", "told"), [(["-m", "seed=0,1"], True), (["--config-dir", "conf"], False)])
def test_a_folder_of_options_alone_is_not_used_silently(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    (tmp_path / "conf" / "optim").mkdir(parents=True)
    assert config_folder().resolve() == ROOT / "conf"
    assert capsys.readouterr().err == ""
    (tmp_path / "conf" / "optim" / "mine.yaml").write_text("lr: 1")
    assert config_folder().resolve() == ROOT / "conf"
    said = capsys.readouterr().err
    assert ("The folder conf is not used, because it has no train.yaml" in said) is told
    assert said.endswith("use --config-dir conf.\n") is told
    (tmp_path / "conf" / "mine.yaml").write_text("defaults: [train]")
    assert config_folder().resolve() == ROOT / "conf"
    said = capsys.readouterr().err
    assert said.endswith("To use conf/mine.yaml, pass --config-path conf --config-name mine.\n") is told
