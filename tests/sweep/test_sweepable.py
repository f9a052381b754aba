"""What sweeps know of an application: nothing of a plain function, more of a `Sweepable`."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest

from trainyard.command import Application
from trainyard.errors import TrainyardError
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.sweepable import PlainTask, Sweepable, SweepableTask, as_sweepable
from trainyard.track.sweep_position import SweepPosition

ROOT = Path(__file__).parents[2]
POSITION = SweepPosition(None, ("x",), "x=1")


def test_a_function_is_run_as_it_is() -> None:
    def task(cfg: Any) -> Any:
        return cfg.x

    plain = as_sweepable(task)
    assert isinstance(plain, PlainTask)
    assert plain(SimpleNamespace(x=3)) == 3
    assert plain.at(POSITION) is task
    assert (plain.resumes, plain.fuse, plain.check(None), plain.slots(None, 1)) == (False, None, None, 1)


@pytest.mark.parametrize("application", [Application(), type("Mine", (SweepableTask,), {})()])
def test_an_object_with_all_of_the_protocol_is_taken(application: Any) -> None:
    assert isinstance(application, Sweepable)
    assert as_sweepable(application) is application


def test_the_application_knows_its_position() -> None:
    assert Application().position is None
    assert Application().at(POSITION).position == POSITION


def test_a_part_of_the_protocol_is_an_error() -> None:
    def task(cfg: Any) -> Any:
        return cfg.x

    task.resumes, task.check = True, print  # type: ignore[attr-defined]
    with pytest.raises(
        TrainyardError, match="The task function 'task' has the attributes check, resumes, which a sweep does not read"
    ):
        as_sweepable(task)

    class Half:
        resumes = True

        def __call__(self, cfg: Any) -> Any:
            return 1.0

    with pytest.raises(TrainyardError, match="has the attribute resumes, which a sweep"):
        as_sweepable(Half())


# Everything in the script itself: workers do not run it again, and Hydra looks for the config beside it.
SCRIPT = """
from dataclasses import dataclass, replace
import hydra
from trainyard.errors import TrainyardError
from trainyard.sweep.sweepable import SweepableTask

FACTOR = 10

@dataclass(frozen=True)
class App(SweepableTask):
    position: object = None

    def __call__(self, cfg):
        print("position:", self.position and self.position.name, flush=True)
        return FACTOR * cfg.x

    def check(self, config):
        if config.x < 0:
            raise TrainyardError(f"x: {config.x} is invalid. Expected a number of at least 0.")

    def at(self, position):
        return replace(self, position=position)

if __name__ == "__main__":
    hydra.main(version_base="1.3", config_path="conf", config_name="app")(App())()
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    (tmp_path / "app.py").write_text(SCRIPT)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/app.yaml").write_text("x: 1\ndefaults: [_self_, {override hydra/launcher: local}]\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}

    def start(*arguments: Any) -> Any:
        environment = clean | {"PYTHONPATH": str(ROOT / "src")}
        return forked.run([sys.executable, "app.py", *arguments], cwd=tmp_path, env=environment)

    return start


def test_an_object_of_a_script_by_itself(run: Any) -> None:
    result = run("x=3")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "position: None\n"


def test_an_object_of_a_script_in_a_sweep(run: Any, tmp_path: Path) -> None:
    wrong = run("-m", "hydra.sweep.dir=s", "x=1,-2")
    assert "x: -2 is invalid. Expected a number of at least 0." in wrong.stderr
    assert not (tmp_path / "s/manifest.jsonl").exists()
    result = run("-m", "hydra.sweep.dir=s", "x=1,2")
    assert result.returncode == 0, result.stderr
    assert [entry.objective for entry in Manifest.open(tmp_path / "s").entries.values()] == [10, 20]
    assert (tmp_path / "s/1/output.log").read_text() == "position: x=2\n"
