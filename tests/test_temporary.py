"""Names of temporary files, and folders that the next process removes when their own was killed."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainyard import temporary

SOCKET = """
import os, signal, sys
from multiprocessing import util
from trainyard import temporary
temporary.for_multiprocessing()
folder = util.get_temp_dir()
open(folder + "/listener", "w").close()
print(folder, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_names_of_dead_processes(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead = ended.pid
    host, pid, start = temporary.marked("").split("-")
    of_dead = {f"new-{host}-{dead}-{start}", f"new-{host}-{pid}-{int(start) + 1}"}
    others = {
        temporary.marked("new-"),
        f"new-{host}-{pid}-0",  # where a system does not tell the time
        f"new-elsewhere-{dead}-{start}",
        f"new-{host}-{dead}-{start}x",
        "new-",
        f"old-{host}-{dead}-{start}",
    }
    for name in of_dead | others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    temporary.remove_left(tmp_path, "new-")
    assert {entry.name for entry in tmp_path.iterdir()} == others


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


def test_sockets_of_multiprocessing(short: Path) -> None:
    """Those of a process that ends are gone; those of one that is killed go when the next one starts."""
    environment = os.environ | {"TMPDIR": str(short), "PYTHONPATH": str(Path(temporary.__file__).parents[1])}

    def run(how: str) -> tuple[int, Path]:
        command = [sys.executable, "-c", SOCKET, how]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        return done.returncode, Path(done.stdout.strip())

    status, left = run("killed")
    assert status == -signal.SIGKILL
    assert left.parent.parent == short
    assert (left / "listener").exists()
    status, own = run("ended")
    assert status == 0
    assert own.parent == left.parent
    assert not list(own.parent.iterdir())
