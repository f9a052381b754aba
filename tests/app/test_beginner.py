"""The beginner's example: the preset, and the project that docs/coming-from-openmmlab.md shows, in its own folder."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import forked
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/coming-from-openmmlab.md"


def files() -> dict[str, str]:
    """The files of the project, as the page shows them: each has its path in one of its first two lines."""
    section = PAGE.read_text().split("### A project of your own")[1].split("## The tables")[0]
    found = {}
    for text in re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.DOTALL):
        (path,) = re.findall(r"^# (\S+\.(?:py|yaml))$", text, re.MULTILINE)
        found[path] = text
    return found


def run(program: Path, folder: Path) -> list[dict[str, Any]]:
    """`python … experiment=beginner` in a folder; returns the journal."""
    command = [sys.executable, str(program), "experiment=beginner", "tracker=none", "device=cpu", "hydra.run.dir=run"]
    path = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=folder, env=os.environ | path)
    assert done.returncode == 0, done.stderr
    assert "Best val/accuracy 0.9" in done.stdout
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def check(journal: list[dict[str, Any]], folder: Path) -> None:
    """What the issue asks of it: the rate cut at epochs 4 and 8, validation from the 2nd on, every epoch saved."""
    points = [(record["epoch"], record["values"]) for record in journal if record["kind"] == "metrics"]
    rates = {epoch: values["train/lr"] for epoch, values in points if "train/lr" in values}
    assert rates == {epoch: pytest.approx(0.1 * 0.1 ** ((epoch >= 4) + (epoch >= 8))) for epoch in range(10)}
    accuracy = {epoch: values["val/accuracy"] for epoch, values in points if "val/accuracy" in values}
    assert list(accuracy) == list(range(2, 11))
    assert accuracy[10] > 0.95
    saved = {path.name for path in (folder / "run/checkpoints").glob("*.pt")}
    assert saved == {"best.pt", *(f"epoch_{epoch:04d}.pt" for epoch in range(1, 11))}


def test_a_project_of_ones_own(tmp_path: Path) -> None:
    shown = files()
    assert set(shown) == {"rings.py", "train.py", "conf/experiment/beginner.yaml"}
    for path, text in shown.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    check(run(tmp_path / "train.py", tmp_path), tmp_path)
    config = (tmp_path / "run/config.yaml").read_text()
    assert "rings.MLP" in config, "its own experiment, not ours of the same name"


def test_the_preset(tmp_path: Path) -> None:
    check(run(ROOT / "train.py", tmp_path), tmp_path)
