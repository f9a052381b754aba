import logging
import os
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from waiting import LIMIT

from trainyard.app import main

ROOT = Path(__file__).parents[2]
# Hydra 1.4 registers the configs of its plugins once in a process: before `hydra_restore_singletons` looks.
Plugins.instance()
QUICK = ["data=rings", "data.num_samples=300", "loop.max_epochs=2", "model.hidden=[8]", "tracker=none"]


@pytest.fixture
def train(tmp_path: Path) -> Any:
    """Run `python train.py …` in an empty folder, as a user would; in a forked process unless `run` is another's."""

    def run(*arguments: Any, quick: bool = True, env: Any = None, run: Any = forked.run) -> Any:
        flags = [argument for argument in arguments if argument == "-m"]  # argparse wants them before the overrides
        rest = [argument for argument in arguments if argument != "-m"]
        command = [sys.executable, str(ROOT / "train.py"), *flags, *(QUICK if quick else []), *rest]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")},
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            **(env or {}),
        }
        return run(command, cwd=tmp_path, env=environment, timeout=LIMIT)

    run.quick = QUICK  # type: ignore[attr-defined]
    return run


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], hydra_restore_singletons: Any
) -> Any:
    """`train.py` with these arguments in an empty folder: its status, and what it said on standard error."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "500")

    def run(*arguments: Any, quick: Any = QUICK) -> Any:
        for name in ("HYDRA_FULL_ERROR", "TRAINYARD_FULL_ERROR"):  # each main() sets them, for its own process
            monkeypatch.setenv(name, "")
        monkeypatch.setattr(sys, "argv", ["train.py", *quick, *arguments])
        capfd.readouterr()
        handlers, level = logging.root.handlers[:], logging.root.level
        for handler in handlers:
            logging.root.removeHandler(handler)
        try:
            main(config_path=ROOT / "conf")
        except SystemExit as end:
            return end.code, capfd.readouterr().err
        finally:
            GlobalHydra.instance().clear()
            for handler in logging.root.handlers[:]:  # Hydra's, which write into the run's directory
                logging.root.removeHandler(handler)
                handler.close()
            for handler in handlers:
                logging.root.addHandler(handler)
            logging.root.setLevel(level)
        return 0, capfd.readouterr().err

    return run
