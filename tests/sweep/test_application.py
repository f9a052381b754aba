"""Application of a sweep: recorded in the manifest, refused if it is another, started again to continue it."""

import csv
import os
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from waiting import LIMIT

from trainyard.application import StartedAs
from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).parents[2]
RESUME = ("-m", "trainyard", "sweep", "resume")
SINE = """
import math
from pathlib import Path
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="small")
def main(cfg):
    with Path("calls").open("a") as file:
        file.write(f"{cfg.scale * cfg.x}\\n")
    return cfg.scale * math.sin(cfg.x)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def python(tmp_path: Path) -> Any:
    folder = tmp_path / "project/waves"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "sine.py").write_text(SINE)
    for name, scale in {"small": 1, "large": 100}.items():
        (folder / f"{name}.yaml").write_text(
            f"scale: {scale}\nx: 0\ndefaults: [_self_, {{override hydra/launcher: local}}]\n"
        )

    def run(*arguments: Any, cwd: str = "project") -> Any:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
        environment = clean | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "500"}
        return forked.run([sys.executable, *map(str, arguments)], cwd=tmp_path / cwd, timeout=LIMIT, env=environment)

    return run


def _objectives(tmp_path: Path) -> list[str]:
    with (tmp_path / "project/s/results.csv").open() as file:
        return [row["objective"][:4] for row in csv.DictReader(file)]


def test_the_application_that_began_the_sweep_goes_on(python: Any, tmp_path: Path) -> None:
    began = python("waves/sine.py", "-m", "--config-name", "large", "x=1,2", "hydra.sweep.dir=s")
    assert began.returncode == 0, began.stderr
    assert Manifest.open(tmp_path / "project/s").application == StartedAs(str(tmp_path / "project/waves/sine.py"))
    assert _objectives(tmp_path) == ["84.1", "90.9"]
    (tmp_path / "project/s/results.csv").unlink()
    resumed = python(*RESUME, tmp_path / "project/s", cwd=".")
    assert resumed.returncode == 0, resumed.stderr
    assert _objectives(tmp_path) == ["84.1", "90.9"]
    assert sorted((tmp_path / "project/calls").read_text().split()) == ["100", "100", "200", "200"]


def test_a_sweep_goes_on_with_the_configs_of_its_config_path(python: Any, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for scale in (3, 4):
        (project / f"own{scale}").mkdir()
        (project / f"own{scale}/small.yaml").write_text(
            f"scale: {scale}\nx: 0\ndefaults: [_self_, {{override hydra/launcher: local}}]\n"
        )
    sweep = ["waves/sine.py", "-m", "x=1,2", "hydra.sweep.dir=s"]
    for flag in (["-cp", project / "own3"], [f"--config-path={project}/own4"], ["-cp", "../own3"]):
        assert python(*sweep, *flag).returncode == 0
        (project / "calls").unlink()
        resumed = python(*RESUME, "s")
        assert resumed.returncode == 0, resumed.stderr
        scale = 4 if "own4" in str(flag) else 3
        assert sorted((project / "calls").read_text().split()) == [f"{scale}", f"{2 * scale}"]
    (project / "waves").rename(project / "oceans")
    (project / "calls").unlink()
    assert python(*RESUME, "s", "--app", "oceans/sine.py").returncode == 0
    assert sorted((project / "calls").read_text().split()) == ["3", "6"]
    assert python("oceans/sine.py", *sweep[1:], "-cp", project / "own4").returncode == 0
    (project / "own4").rename(project / "moved")
    lost = python(*RESUME, "s")
    assert lost.returncode == 2
    assert (
        f"The sweep in {project}/s was started with --config-path {project}/own4, which does not exist. Restore this "
        "folder, or repeat the command of the sweep with another --config-path and "
        f"hydra.sweep.dir={project}/s." in lost.stderr
    )
    assert python("oceans/sine.py", *sweep[1:]).returncode == 0, "without the flag"
    (project / "calls").unlink()
    assert python(*RESUME, "s").returncode == 0
    assert sorted((project / "calls").read_text().split()) == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["-m", "x=1"], None),
        (["--config-path=/a", "-m"], "/a"),
        (["-m", "-cp", "/a"], "/a"),
        (["-cp", "/a", "--config-path", "/b"], "/b"),
        (["-m", "-cp"], None),
        (["-m", "--config-pa", "/a"], "/a"),
        (["--config-p=/a"], "/a"),
        (["--config-name=/a", "--config", "/b"], None),
    ],
)
def test_the_config_path_of_a_command_line(
    arguments: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "program.py", raising=False)
    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    started = StartedAs.now()
    assert started is not None
    assert started.config_path == expected


def test_a_module_goes_on_as_a_module(python: Any, tmp_path: Path) -> None:
    assert python("-m", "waves.sine", "-m", "x=1,2", "hydra.sweep.dir=s").returncode == 0
    application = Manifest.open(tmp_path / "project/s").application
    assert application is not None
    assert (application.module, str(application)) == ("waves.sine", "python -m waves.sine")
    for further in ([], ["--app", tmp_path / "project/waves/sine.py"]):
        assert python(*RESUME, tmp_path / "project/s", *further, cwd=".").returncode == 0
    assert len((tmp_path / "project/calls").read_text().split()) == 6
    (tmp_path / "project/waves/sine.py").rename(tmp_path / "project/waves/cosine.py")
    for further in ([], ["--app", tmp_path / "project/waves/cosine.py"]):
        lost = python(*RESUME, tmp_path / "project/s", *further, cwd=".")
        assert lost.returncode == 2
        assert f"{tmp_path}/project/waves/sine.py does not exist. Restore this file." in lost.stderr


def test_another_application_is_refused(python: Any, tmp_path: Path) -> None:
    assert python("waves/sine.py", "-m", "x=1,2", "hydra.sweep.dir=s").returncode == 0
    before = (tmp_path / "project/s/manifest.jsonl").read_bytes()
    sentence = f"s contains a sweep of {tmp_path}/project/waves/sine.py, but this command runs {ROOT / 'train.py'}."
    for other in (
        python(*RESUME, "s", "--app", ROOT / "train.py"),
        python(ROOT / "train.py", "-m", "tracker=none", "seed=1,2", "hydra.sweep.dir=s"),
    ):
        assert other.returncode == 2, other.stdout
        assert sentence in other.stderr
    assert (tmp_path / "project/s/manifest.jsonl").read_bytes() == before


def test_an_application_that_was_moved(python: Any, tmp_path: Path) -> None:
    assert python("waves/sine.py", "-m", "x=1,2", "hydra.sweep.dir=s").returncode == 0
    (tmp_path / "project/waves").rename(tmp_path / "project/oceans")
    lost = python(*RESUME, "s")
    assert lost.returncode == 2
    assert (
        f"contains a sweep of {tmp_path}/project/waves/sine.py, which does not exist. Pass the new path of this script "
        "with --app." in lost.stderr
    )
    assert python(*RESUME, "s", "--app", "oceans/sine.py").returncode == 0
    assert len((tmp_path / "project/calls").read_text().split()) == 4


def test_a_manifest_without_an_application(python: Any, tmp_path: Path) -> None:
    assert python("waves/sine.py", "-m", "x=1,2", "hydra.sweep.dir=s").returncode == 0
    manifest = tmp_path / "project/s/manifest.jsonl"
    lines = [line for line in manifest.read_text().splitlines(keepends=True) if '"application"' not in line]
    manifest.write_text("".join(lines))
    nameless = python(*RESUME, "s")
    assert nameless.returncode == 2
    assert (
        "s contains no record of the application that started the sweep. Pass the application's script with --app."
        in nameless.stderr
    )
    assert python(*RESUME, "s", "--app", "waves/sine.py").returncode == 0
    assert Manifest.open(tmp_path / "project/s").application is not None, "and then it has one"


def test_a_grid_of_a_file_goes_on_as_it_was(python: Any, tmp_path: Path) -> None:
    (tmp_path / "project/jobs.csv").write_text("+row\na\nb\n")
    command = ["waves/sine.py", "-m", "hydra.sweep.dir=s", "hydra/sweeper=grid", "x=1,2", "scale=3,4"]
    further = ["hydra.sweeper.zip=[[x,scale]]", "hydra.sweeper.file=jobs.csv", "hydra.sweeper.when={scale:'x=1'}"]
    shown = python(*command, *further, "hydra.launcher.dry_run=true")
    assert "4 jobs; 4 to run" in shown.stdout, shown.stderr
    assert "#2    x=1 scale=3 row=b\n  #3    x=2 row=b\n" in shown.stdout
    assert not (tmp_path / "project/s").exists()
    assert python(*command, *further).returncode == 0
    assert python(*RESUME, "s").returncode == 0
    assert [entry.overrides for entry in Manifest.open(tmp_path / "project/s").entries.values()] == [
        ["x=1", "scale=3", "+row=a"], ["x=2", "+row=a"], ["x=1", "scale=3", "+row=b"], ["x=2", "+row=b"],
    ]  # fmt: skip
    assert sorted((tmp_path / "project/calls").read_text().split()) == ["2"] * 4 + ["3"] * 4
