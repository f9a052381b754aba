"""A command that is told to end for the second time takes its shipper with it, whatever that is doing."""

import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked import Forked
from waiting import LIMIT, until

from trainyard.track import RunInfo
from trainyard.track.shipped import FILE, ShipperLock, summary
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.store import Stores

Points = dict[tuple[str, int], list[str]]

COMMAND = """
import signal, sys
from pathlib import Path
from trainyard.track import Journal, MLflowTracker, RunInfo
tracker = MLflowTracker(uri=sys.argv[1])
tracker.start()
for number in range(int(sys.argv[2])):
    work_dir = Path("outputs", str(number))
    work_dir.mkdir(parents=True, exist_ok=True)
    tracker.open(work_dir, RunInfo(name=str(number)))
    with Journal(work_dir) as journal:
        for step in range(1000):
            journal.metrics(step, {"loss": 1.0})
        journal.status("FINISHED")
    tracker.close(work_dir)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print(tracker._process.pid, flush=True)
signal.sigwait([signal.SIGINT])
print("once", flush=True)
signal.sigwait([signal.SIGINT])
print(tracker.abort(), flush=True)
"""


@contextmanager
def command(uri: str, runs: int, environment: dict[str, str], spares: int = 3) -> Iterator[tuple[Forked, int]]:
    """A command that has ended its runs, and its shipper's process id."""
    own = [sys.executable, "-c", COMMAND, uri, str(runs)]
    with Forked(own, env=environment, stdout=subprocess.PIPE, spares=spares) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())


def end(process: Forked, shipper: int) -> str:
    """Sends two Ctrl-C; what the command says, if both are gone then."""
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "once\n"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT)
    assert not Path(f"/proc/{shipper}").exists()
    assert process.returncode == 0
    return said


def test_amid_its_start(uri: str, environment: dict[str, str]) -> None:
    with command(uri, 1, environment, spares=0) as (process, shipper):  # the shipper has its imports to do
        said = end(process, shipper)
    assert "1001 records of run 0 are not in MLflow" in said
    assert "The shipper was stopped." in said
    assert "trainyard sync" in said


def test_amid_its_work(
    uri: str,
    environment: dict[str, str],
    tmp_path: Path,
    journaled: Callable[[Path], Points],
    stored: Callable[[str, str], Points],
) -> None:
    outputs = tmp_path / "outputs"
    (outputs / "19").mkdir(parents=True)
    lock = ShipperLock(outputs / "19")
    assert lock.acquire()  # so that there is something left to ship
    with command(uri, 20, environment) as (process, shipper):
        until(lambda: any(summary(file.parent).complete for file in outputs.glob(f"*/{FILE}")))
        said = end(process, shipper)
    lock.release()
    work_dirs = sorted(outputs.iterdir())
    missing = [work_dir for work_dir in work_dirs if not summary(work_dir).complete]
    assert 0 < len(missing) < 20
    assert f"records of {len(missing)} runs are not in MLflow" in said
    stores = Stores()
    for work_dir in work_dirs:
        assert ship_now(work_dir, stores).complete
    for work_dir in (work_dirs[0], missing[0], work_dirs[-1]):
        assert stored(uri, str(summary(work_dir).run_id)) == journaled(work_dir)
        assert json.loads((work_dir / FILE).read_bytes())[uri]["sent_status"] == "FINISHED"
    assert len({summary(work_dir).run_id for work_dir in work_dirs}) == 20


def test_while_it_waits_for_a_server(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        silent.settimeout(LIMIT)
        with command(uri, 1, environment) as (process, shipper), silent.accept()[0]:
            said = end(process, shipper)
    assert "1001 records of run 0 are not in MLflow" in said


def test_while_it_waits_for_the_database(uri: str, environment: dict[str, str], tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("BEGIN IMMEDIATE")
        with command(uri, 1, environment) as (process, shipper):
            until(lambda: (tmp_path / "outputs/0/.shipper.lock").exists())
            said = end(process, shipper)
    assert "1001 records of run 0 are not in MLflow" in said
    assert RunInfo.read(tmp_path / "outputs/0").name == "0"
    assert ship_now(tmp_path / "outputs/0", Stores()).complete


def test_nothing_is_said_of_what_is_shipped(uri: str, environment: dict[str, str], tmp_path: Path) -> None:
    with command(uri, 1, environment) as (process, shipper):
        until(lambda: (tmp_path / "outputs/0" / FILE).exists())
        until(lambda: summary(tmp_path / "outputs/0").complete)
        assert end(process, shipper) == "\n"


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db"])
def test_a_command_without_runs(uri: str, environment: dict[str, str], tmp_path: Path) -> None:
    with command(uri, 0, environment) as (process, shipper):
        assert end(process, shipper) == "\n"
    assert not list(tmp_path.iterdir())
