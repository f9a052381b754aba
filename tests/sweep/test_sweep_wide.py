"""Settings of Hydra's that hold for a whole sweep, set in a file that only some of its jobs choose."""

import os
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from waiting import LIMIT

ROOT = Path(__file__).parents[2]
APP = """
from pathlib import Path
from trainyard.app import main
if __name__ == "__main__":
    main(config_path=Path(__file__).parent / "conf", config_name="mine")
"""


CALLBACK = "{_target_: hydra.experimental.callbacks.LogJobReturnCallback}"


@pytest.fixture
def sweep(tmp_path: Path) -> Any:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "run.py").write_text(APP)
    (tmp_path / "conf/mine.yaml").write_text("defaults: [train]\n")
    settings = {"one": "launcher: {max_jobs: 1}", "two": "sweep: {dir: elsewhere}", "three": "{}"}
    settings["four"] = f"callbacks: {{mine: {CALLBACK}}}"
    for name, hydra in settings.items():
        text = f"# @package _global_\nloop: {{max_epochs: 1}}\nhydra:\n  {hydra}\n"
        (tmp_path / f"conf/experiment/{name}.yaml").write_text(text)

    def run(*arguments: str) -> Any:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
        return forked.run(
            [sys.executable, "run.py", "-m", "tracker=none", "hydra.launcher.dry_run=true", *arguments], cwd=tmp_path,
            env=clean | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "500"}, timeout=LIMIT,
        )  # fmt: skip

    return run


def test_of_a_swept_experiment_they_are_refused(sweep: Any) -> None:
    result = sweep("experiment=one,two,three", "seed=0,1")
    assert result.returncode == 2, result.stdout
    assert (
        "hydra.launcher.max_jobs: 1 is invalid. Expected no value, as for the entire sweep. experiment/one.yaml sets "
        "this key, but the key applies" in (result.stderr)
    )
    assert "set hydra.launcher.max_jobs to one value on the command line instead." in result.stderr
    assert "in 2 of 6 jobs, first in #0: experiment=one seed=0" in result.stderr
    assert "hydra.sweep.dir: 'elsewhere' is invalid." in result.stderr
    assert "experiment/two.yaml sets this key" in result.stderr
    assert "experiment=three" not in result.stderr


def test_of_an_experiment_for_all_they_are_in_effect(sweep: Any) -> None:
    result = sweep("experiment=one", "seed=0,1", "hydra.sweep.dir=m/${optim.lr}")
    assert result.returncode == 0, result.stderr
    assert "2 to run on 1 slot" in result.stdout


def test_a_key_that_the_sweep_lacks_is_set_with_a_plus(sweep: Any) -> None:
    result = sweep("experiment=three,four")
    assert result.returncode == 2, result.stdout
    assert "set +hydra.callbacks.mine to one value on the command line instead." in result.stderr
    result = sweep("experiment=three,four", f"+hydra.callbacks.mine={CALLBACK}")
    assert result.returncode == 0, result.stderr
