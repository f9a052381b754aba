"""A real MLflow database, copied for each test, and a real MLflow server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import LIMIT, until

from trainyard.track import Journal, RunInfo, Status, own, read
from trainyard.track.shipper.__main__ import configure

configure()  # before anything here imports mlflow

Points = dict[tuple[str, int], list[str]]


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in a folder of its own, under no tracking settings of the user's."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def environment() -> dict[str, str]:
    """For a program of a test's own that imports trainyard."""
    import trainyard

    return os.environ | {"PYTHONPATH": str(Path(trainyard.__file__).parents[1])}


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow import MlflowClient

    from trainyard.track.shipper.store import Stores

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    stores = Stores()
    stores.get(f"sqlite:///{path}")
    stores.close()
    assert MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, _empty_database: Path) -> str:
    """A fresh SQLite store, which is also where the tracker looks by default."""
    shutil.copy(_empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run's directory with its `run.json`, as a tracker would."""

    def make(uri: str | None, name: str = "run", **fields: object) -> Path:
        work_dir = tmp_path / "outputs" / name
        work_dir.mkdir(parents=True)
        own.marked(RunInfo(name=name, uri=uri, experiment="trainyard", **fields), work_dir).write(work_dir)
        return work_dir

    return make


@pytest.fixture
def fill() -> Callable[..., None]:
    """Writes a small training's journal."""

    def write(work_dir: Path, steps: int = 20, status: Status | None = "FINISHED") -> None:
        with Journal(work_dir) as journal:
            journal.status("RUNNING")
            for step in range(1, steps + 1):
                journal.metrics(step, {"train/loss": 1 / step, "lr": 0.1})
            if status is not None:
                journal.status(status)

    return write


@pytest.fixture
def journaled() -> Callable[[Path], Points]:
    """Each point in a journal, by name and step: its values and times."""

    def points(work_dir: Path) -> Points:
        found: Points = {}
        for record, _ in read(work_dir / "metrics.jsonl"):
            if record["kind"] == "metrics":
                for name, value in record["values"].items():
                    point = repr((value, int(record["time"] * 1000)))
                    found.setdefault((name, record["step"]), []).append(point)
        return found

    return points


@pytest.fixture
def stored() -> Callable[[str, str], Points]:
    """Each point that MLflow has of a run, likewise."""

    def points(uri: str, run_id: str) -> Points:
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        found: Points = {}
        for name in client.get_run(run_id).data.metrics:
            for metric in client.get_metric_history(run_id, name):
                found.setdefault((name, metric.step), []).append(repr((metric.value, metric.timestamp)))
        return found

    return points


@pytest.fixture
def sync(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`trainyard sync`, in this process; it returns the exit status."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)

    def run(*arguments: str) -> int:
        from trainyard.cli import main  # not at the top: the GPU check collects without what it imports

        with pytest.raises(SystemExit) as end:
            main(["sync", *arguments])
        return int(end.value.code or 0)

    return run


class Server:
    """`mlflow server` on a port of its own, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        if self.running:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )

    def wait(self) -> None:
        def healthy() -> bool:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=LIMIT).close()
            except OSError:
                return False
            return True

        try:
            until(healthy)
        except TimeoutError as error:
            raise TimeoutError((self.folder / "server.log").read_text()) from error

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def absent_server(tmp_path_factory: pytest.TempPathFactory, _empty_database: Path) -> Iterator[Server]:
    """Not started, unless an earlier test did that."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(_empty_database, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture
def server(absent_server: Server) -> Server:
    absent_server.start()
    absent_server.wait()
    return absent_server
