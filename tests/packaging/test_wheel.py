"""What the wheel, the editable install and the sdist carry, and that a user's own Hydra app finds our configs."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One worker builds the wheel once for all of these.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]

APP = """\
import sys
import hydra
from omegaconf import OmegaConf

@hydra.main(version_base="1.3", config_path="conf", config_name="mine")
def main(cfg):
    print(OmegaConf.to_yaml(cfg.model))
    print("heavy:", sorted({"torch", "mlflow", "sklearn"} & set(sys.modules)))

main()
"""


def python(*arguments: str, cwd: Path = ROOT, path: Path | None = None) -> str:
    """Runs Python in a process of its own, with ``path`` alone as PYTHONPATH; gives its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(target: str, folder: Path, source: Path = ROOT) -> Path:
    pytest.importorskip("hatchling", reason="hatchling comes with the test extra")
    python("-m", "hatchling", "build", "--target", target, "--directory", str(folder), cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed."""
    target = tmp_path_factory.mktemp("site")
    python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target), str(wheel))
    return target


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A user's own project: its own primary config and one experiment; the model's config is not there."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "mine.yaml").write_text("defaults:\n  - model: mlp\n  - experiment: null\n  - _self_\n")
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text("# @package _global_\nmodel:\n  added: by the user\n")
    return tmp_path


def names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def test_the_wheel_carries_every_config_and_both_packages(wheel: Path) -> None:
    carried = names(wheel)
    configs = {f"trainyard/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert "trainyard/conf/train.yaml" in configs
    assert configs <= carried
    assert {"trainyard/conf/__init__.py", "trainyard/py.typed", "trainyard/app.py"} <= carried
    assert "hydra_plugins/trainyard_searchpath/__init__.py" in carried
    assert "hydra_plugins/__init__.py" not in carried, "it would hide every other Hydra plugin"
    assert any(name.endswith("/licenses/LICENSE") for name in carried)
    assert {name.partition("/")[0] for name in carried if ".dist-info/" not in name} == {"trainyard", "hydra_plugins"}


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert names(build("wheel", tmp_path / "again", source=unpacked)) == names(wheel)


def test_the_editable_install_points_at_src_and_copies_nothing(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling comes with the test extra")
    code = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
    python("-c", code, str(tmp_path))
    (editable,) = tmp_path.iterdir()
    with zipfile.ZipFile(editable) as opened:
        (pth,) = (name for name in opened.namelist() if ".dist-info/" not in name)
        assert opened.read(pth).decode().split() == str(ROOT / "src").split()


@pytest.mark.parametrize("kind", ["wheel", "checkout"])
def test_a_users_app_finds_our_configs(kind: str, application: Path, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue("installed") if kind == "wheel" else ROOT / "src"
    output = python("app.py", "experiment=own", cwd=application, path=path)
    assert "_target_: trainyard.models" in output
    assert "added: by the user" in output
    assert "heavy: []" in output

    shown = python("app.py", "--info", "searchpath", cwd=application, path=path)
    ours = [line for line in shown.splitlines() if "| trainyard" in line]
    assert len(ours) == 1
    assert ("pkg://trainyard.conf" if kind == "wheel" else f"file://{ROOT / 'conf'}") in ours[0]


def test_a_users_experiment_trains_with_the_installed_wheel(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "app.py").write_text("from trainyard.app import main\n\nmain(config_path='conf')\n")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: rings\n  - override /tracker: none\n"
        "loop:\n  max_epochs: 1\n"
    )
    output = python("app.py", "experiment=own", "device=cpu", "hydra.run.dir=run", cwd=tmp_path, path=installed)
    assert "val/accuracy" in output
    assert (tmp_path / "run" / "checkpoints" / "last.json").exists()


def test_a_users_own_option_wins_over_ours(application: Path, installed: Path) -> None:
    (application / "conf" / "model").mkdir()
    (application / "conf" / "model" / "mlp.yaml").write_text("mine: true\n")
    assert python("app.py", cwd=application, path=installed).startswith("mine: true\n")


def test_configs_that_are_on_the_search_path_already_are_not_added_again(tmp_path: Path) -> None:
    app = APP.replace('config_path="conf"', f"config_path={str(ROOT / 'conf')!r}").replace('"mine"', '"train"')
    (tmp_path / "app.py").write_text(app)
    shown = python("app.py", "--info", "searchpath", cwd=tmp_path, path=ROOT / "src")
    assert shown.count(f"file://{ROOT / 'conf'}") == 1


def test_the_project_of_the_docs_trains_with_the_installed_wheel(tmp_path: Path, installed: Path) -> None:
    page = (ROOT / "docs" / "coming-from-openmmlab.md").read_text()
    section = page.split("### A project of your own")[1].split("## The tables")[0]
    for text in re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.DOTALL):
        (name,) = re.findall(r"^# (\S+\.(?:py|yaml))$", text, re.MULTILINE)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    chosen = ["experiment=beginner", "tracker=none", "device=cpu", "hydra.run.dir=run"]
    output = python("train.py", *chosen, cwd=tmp_path, path=installed)
    assert "Best val/accuracy 0.9" in output
    assert "rings.MLP" in (tmp_path / "run" / "config.yaml").read_text()
