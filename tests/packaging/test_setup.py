"""scripts/setup.sh, on a project of one file whose build needs no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "scripts" / "setup.sh"

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "small"
version = "1"
"""

# A whole build backend: a wheel that holds one .pth file, as an editable install does.
BACKEND = """\
import os, zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    files = {
        "small.pth": os.getcwd(),
        "small-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\nProvides-Extra: test\\n",
        "small-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files["small-1.dist-info/RECORD"] = "".join(f"{name},,\\n" for name in [*files, "small-1.dist-info/RECORD"])
    with zipfile.ZipFile(os.path.join(directory, "small-1-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return "small-1-py3-none-any.whl"

build_wheel = build_editable
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "a path with spaces"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SETUP, root / "scripts")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "constraints.txt").write_text("torch==2.13.0\n")
    (root / "backend.py").write_text(BACKEND)
    (root / "small.py").write_text("")
    return root


def setup(root: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Runs setup.sh from another folder; gives its exit status and what it said."""
    done = subprocess.run(
        ["bash", str(root / "scripts" / "setup.sh"), *arguments],
        cwd=root.anchor,
        env={**os.environ, "TRAINYARD_PYTHON": sys.executable, "PIP_NO_INDEX": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "", "standard output belongs to the command that follows"
    return done.returncode, done.stderr


@pytest.mark.slow
def test_setup_installs_once_keeps_extras_and_repairs_itself(project: Path) -> None:
    status, said = setup(project)
    assert status == 0, said
    assert "creating .venv" in said
    subprocess.run([project / ".venv/bin/python", "-c", "import small"], check=True, cwd=project.anchor)

    assert setup(project) == (0, ""), "nothing to do: nothing said"

    assert "installing into .venv with test" in setup(project, "--extra", "test")[1]
    assert setup(project) == (0, ""), "what is there includes what is asked for"

    (project / "constraints.txt").write_text("torch==2.13.1\n")
    (project / "backend.py").write_text(BACKEND.replace("Provides-Extra: test", "Requires-Dist: not-to-be-had"))
    status, said = setup(project)
    assert status == 1
    assert "not-to-be-had" in said
    assert "pip failed" in said
    (project / "backend.py").write_text(BACKEND)
    status, said = setup(project)
    assert status == 0
    assert "with test" in said
    assert "making" not in said

    (project / ".venv" / ".trainyard-unfinished").touch()  # what a call that was cut off leaves
    status, said = setup(project)
    assert status == 0
    assert "creating .venv" in said
    assert setup(project, "--extra", "test") == (0, "")

    moved = project.rename(project.with_name("moved"))
    assert "creating .venv" in setup(moved)[1]
    subprocess.run([moved / ".venv/bin/python", "-c", "import small"], check=True, cwd=project.anchor)


def test_without_a_python_it_says_what_is_needed(project: Path) -> None:
    status, said = setup(project, TRAINYARD_PYTHON=str(project / "nowhere"))
    assert status == 2
    assert "Trainyard needs Python 3.11 or newer" in said
    assert "nowhere" in said
    assert not (project / ".venv").exists()


@pytest.mark.parametrize("arguments", [["--extra"], ["--extra", "a]b"], ["tests"]])
def test_wrong_arguments_end_in_status_2(project: Path, arguments: list[str]) -> None:
    assert setup(project, *arguments)[0] == 2
    assert not (project / ".venv").exists()
