"""Settings that reach other processes, and those that a process takes once: each is tried in one of its own."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from waiting import LIMIT

from trainyard.data import Loaders
from trainyard.errors import ConfigError
from trainyard.runner import Env


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts the process's settings back."""
    method = multiprocessing.get_start_method(allow_none=True)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "kept")
        monkeypatch.delenv(name)
    yield
    multiprocessing.set_start_method(method, force=True)


def in_a_process(code: Any, **variables: Any) -> Any:
    environment = {"PYTHONPATH": ":".join(sys.path), **variables}
    command = [sys.executable, "-c", f"import torch\nfrom trainyard.runner import Env\n{code}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=LIMIT)
    return done.stdout.split(), done.stderr


def test_threads_of_both_kinds() -> None:
    code = "Env(threads=2, interop_threads=3).apply()\nprint(torch.get_num_threads(), torch.get_num_interop_threads())"
    assert in_a_process(code, OMP_NUM_THREADS="1") == (["2", "3"], "")


def test_interop_threads_that_come_too_late() -> None:
    code = """
torch.set_num_interop_threads(2)
Env(interop_threads=2).apply()
Env(interop_threads=5).apply()
print(torch.get_num_interop_threads())
"""
    out, said = in_a_process(code, OMP_NUM_THREADS="1")
    assert out == ["2"]
    assert said.startswith("env.interop_threads=5 has no effect: this process already uses 2 interop threads")


def test_variables_are_for_the_processes_that_follow() -> None:
    Env(omp_num_threads=3, mkl_num_threads=2).apply()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("3", "2")


def test_what_is_not_said_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    multiprocessing.set_start_method("spawn", force=True)
    Env().apply()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
    assert multiprocessing.get_start_method() == "spawn"


class Processes(Dataset[Any]):
    """A sample is the start method of the process that reads it, and the OMP_NUM_THREADS that it finds."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        return multiprocessing.get_start_method(), os.environ.get("OMP_NUM_THREADS", "")


def end_fork_server() -> None:
    """End the fork server of another test, which keeps its environment.

    It is killed: it ends by itself only after all processes that inherited its descriptor, such as forked workers of
    another test.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
    server._stop()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_start_as_they_are_told(method: str) -> None:
    end_fork_server()
    Env(start_method=method, omp_num_threads=3).apply()
    loader = Loaders(train=DataLoader(Processes(), 2, num_workers=1, collate_fn=list))
    (batch,) = loader.loader("train", seed=0, device=torch.device("cpu")).batches()
    assert batch == [(method, "3")] * 2


@pytest.mark.parametrize("key", ["threads", "interop_threads", "omp_num_threads", "mkl_num_threads"])
@pytest.mark.parametrize("given", [0, -1, 1.5, "2", True])
def test_counts_that_cannot_be(key: str, given: bool | float | str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: .* an integer from 1 to 4096"):
        Env(**{key: given})


def test_a_start_method_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"^start_method: 'spwan' .*Did you mean 'spawn'"):
        Env(start_method="spwan")
