"""Scripts of this folder, started as the ranks of a group."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pytest
from forked import Forked
from waiting import LIMIT

HERE = Path(__file__).parent


class Start(Protocol):
    def __call__(self, script: str, arguments: Sequence[str], ranks: int = 2) -> None: ...


@pytest.fixture(scope="session")
def start_ranks() -> Start:
    return run


def run(script: str, arguments: Sequence[str], ranks: int = 2) -> None:
    """Run it to its end, once for each rank; one alone is in no group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    base |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1] / "src")}
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        Forked(
            [sys.executable, str(HERE / script), *arguments],
            env=base if ranks == 1 else base | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)
