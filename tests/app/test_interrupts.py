"""Signals before there is a run, and to the whole process group while loaders have processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from waiting import LIMIT

ROOT = Path(__file__).parents[2]
ENDLESS = "loop.max_epochs=100000"


@pytest.fixture
def start(train: Any, tmp_path: Path) -> Iterator[Any]:
    """`python train.py …` in an empty folder and a process group of its own."""
    started = []

    def run(*arguments: Any) -> Any:
        process = Forked(
            [sys.executable, "-u", str(ROOT / "train.py"), *train.quick, "hydra.run.dir=run", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until(process: Any, text: Any) -> Any:
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(seen)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_before_the_run_began(start: Any, tmp_path: Path, signum: Any) -> None:
    (tmp_path / "slow.py").write_text(
        "import threading\nfrom trainyard.models import MLP\n"
        "def build(**given):\n    print('building', flush=True)\n    threading.Event().wait()\n"
    )
    process = start("model._target_=slow.build")
    _until(process, "building")
    os.killpg(process.pid, signum)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signum, said
    assert said.strip() == "Interrupted before the run began."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("signum", "then"),
    [(signal.SIGINT, "pass"), (signal.SIGTERM, "pass"), (signal.SIGINT, "raise ImportError('lost')")],
)
def test_a_signal_whose_exception_is_caught_ends_the_run_too(
    start: Any, tmp_path: Path, signum: Any, then: str
) -> None:
    """Modules with a bare `except` may be imported at that moment; others, such as torch, log when Python exits."""
    (tmp_path / "deaf.py").write_text(
        "import atexit, logging, os, signal\nfrom trainyard.models import MLP\n"
        "def build(**given):\n"
        "    atexit.register(logging.getLogger('torch.deaf').info, 'at exit')\n"
        "    try:\n"
        f"        signal.raise_signal({int(signum)})\n"
        "    except BaseException:\n"
        f"        {then}\n"
        "    return MLP(**given)\n"
    )
    process = start("model._target_=deaf.build", ENDLESS)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signum, said
    assert said.splitlines()[-1] == "Interrupted before the run began."
    assert not (tmp_path / "run").exists()


def test_a_process_group_with_loaders(start: Any, tmp_path: Path) -> None:
    """Ctrl-C signals every process: the loaders' must not die before the trainer has ended its run."""
    process = start("data.workers=2", ENDLESS)
    _until(process, "epoch 2 ")
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said
    assert said.count("saving a checkpoint") == 1, "the loaders' processes say nothing"
    assert "Traceback" not in said
    assert "resume=true" in said
    assert (tmp_path / "run/checkpoints/last.json").exists()


def test_without_checkpoints(start: Any) -> None:
    process = start("~hook.checkpoint", ENDLESS)
    _until(process, "epoch 2 ")
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said
    assert "Interrupted: ending the run." in said
    assert "no checkpoint was saved, so the run cannot be resumed" in " ".join(said.split())
    assert "resume=true" not in said


def test_a_run_in_its_own_folder_is_resumed_from_that_of_the_command(start: Any) -> None:
    process = start("hydra.job.chdir=true", ENDLESS)
    _until(process, "epoch 2 ")
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said
    assert "use the same command with hydra.run.dir=run resume=true" in " ".join(said.split())
    assert "Checkpoint: run/checkpoints/best.pt" in said


def test_a_second_signal_ends_the_run_without_a_traceback(start: Any, tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "import threading\nfrom trainyard.hooks import Hook\n"
        "class Stuck(Hook):\n    def after_train_iter(self, runner, batch_idx, data_batch, outputs):\n"
        "        print('stuck', flush=True)\n        threading.Event().wait()\n"
    )
    process = start("+hook.stuck._target_=stuck.Stuck")
    _until(process, "stuck")
    os.killpg(process.pid, signal.SIGINT)
    _until(process, "saving a checkpoint")
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said
    assert "Traceback" not in said
