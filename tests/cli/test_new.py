"""`trainyard new`: the project that it makes trains, tests, builds and sweeps."""

import csv
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import forked
import pytest
from waiting import LIMIT

ROOT = Path(__file__).parents[2]


def run(*arguments: Any, cwd: Path, path: Path) -> str:
    """Run Python with a folder on its path; its standard output."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA", "PYTEST"))}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (path, ROOT / "src"))), "OMP_NUM_THREADS": "1"}
    done = forked.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_new_project_tests_builds_and_sweeps(trainyard: Any, tmp_path: Path) -> None:
    status, text, said = trainyard("new", "own_waves", cwd=tmp_path)
    assert status == 0, said
    assert "cd own_waves" in text
    project = tmp_path / "own_waves"
    for tool in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [Path(sys.executable).parent / "ruff", *tool, "."], cwd=project, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project, path=project)

    pytest.importorskip("hatchling", reason="hatchling comes with the test extra")
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "dist", cwd=project, path=project)
    (wheel,) = (tmp_path / "dist").glob("own_waves-*.whl")
    site = tmp_path / "site"  # as pip would install it
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (tmp_path / "elsewhere").mkdir()
    arguments = ("-m", "own_waves.train", "-m", "optim.lr=0.001,0.02", "loop.max_epochs=3", "tracker=none")
    run(*arguments, "hydra.sweep.dir=s", cwd=tmp_path / "elsewhere", path=site)
    with (tmp_path / "elsewhere" / "s" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done"]
    assert '"train/weight_norm"' in (tmp_path / "elsewhere" / "s" / "0" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-project", "For example my_project"),
        ("2fast", "For example _2fast"),
        ("a b", "For example a_b"),
        ("../there", "a Python identifier"),
        ("class", "a Python identifier"),
        ("größe", "a Python identifier"),
        ("", "a Python identifier"),
        ("json", "neither a Python module"),
        ("tests", "a folder of the project"),
        ("torch", "A module or package with this name can be imported"),
        ("taken", "taken already exists"),
    ],
)
def test_a_name_that_cannot_be_is_refused(trainyard: Any, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "taken").touch()
    status, _, said = trainyard("new", name, cwd=tmp_path)
    assert status == 2
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
