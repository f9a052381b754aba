"""The shipper as the process that it is, beside a trainer, killed at random, and without anything to ship to."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import forked
import pytest
from forked import Forked
from mlflow import MlflowClient
from waiting import LIMIT, until

from trainyard.track import Journal, MLflowTracker, RunInfo, read
from trainyard.track.shipped import FILE, LOG, Shipped, ShipperLock

Points = dict[tuple[str, int], list[str]]
Journaled = Callable[[Path], Points]
Stored = Callable[[str, str], Points]


def folder(tmp_path: Path, name: str = "run") -> Path:
    work_dir = tmp_path / "outputs" / name
    work_dir.mkdir(parents=True)
    return work_dir


def pid_of(tracker: MLflowTracker) -> int:
    assert tracker._process is not None
    return tracker._process.pid


GATE = """
import os, time
while not os.path.exists(os.environ["GATE"]):
    time.sleep(0.01)
"""


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipper begins when this file is there: what is done before has not waited for it."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "sitecustomize.py").write_text(GATE)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("GATE", str(folder / "open"))
    return folder / "open"


SPY = """
import os, sys
open(os.environ["SPY"], "w").close()
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open(os.environ["SPY"], "a") as file:
            print(event, arguments, file=file)
sys.addaudithook(note)
"""


def test_a_training(
    uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, gate: Path
) -> None:
    """From the first call to the model that MLflow opens; not a word on the terminal, and none on the network."""
    (tmp_path / "sitecustomize.py").write_text(GATE + SPY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SPY", str(tmp_path / "connections"))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # in which MLflow's telemetry is silent anyway
    for name in ("CI", "GITHUB_ACTIONS", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mine.py").write_text(
        "import torch\ndef load(work_dir, checkpoint):\n    print('noise')\n    return torch.nn.Linear(2, 1), None\n"
    )
    work_dir = folder(tmp_path)
    tracker = MLflowTracker(run_name="digits", tags={"team": "a"}, wait=LIMIT)
    tracker.start()
    info = tracker.open(work_dir, RunInfo(name="mlp", params={"lr": "0.1"}, python_path=[str(tmp_path)]))
    assert (info.name, info.uri) == ("digits", uri)
    with Journal(work_dir) as journal:
        journal.status("RUNNING")
        journal.metrics(1, {"loss": 1.0})
        (work_dir / "best.pt").touch()
        journal.model("best.pt", "mine:load")
        journal.status("FINISHED")
    gate.touch()
    shipment = tracker.finish()
    assert shipment.complete
    assert not shipment.running
    assert str(shipment) == ""
    assert tracker.finish() is shipment
    (run,) = shipment.runs
    assert run.where == "mlflow ui --backend-store-uri sqlite:///mlflow.db"
    found = MlflowClient(uri).get_run(str(run.run_id))
    assert found.info.run_name == "digits"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1"}
    assert found.data.metrics == {"loss": 1.0}
    assert found.data.tags["team"] == "a"
    assert MlflowClient(uri).search_logged_models([str(run.experiment_id)])[0].name == "model"
    assert (work_dir / LOG).read_text() == "noise\n"
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert (tmp_path / "connections").read_text() == ""


def test_a_wrong_config_leaves_nothing_behind(tmp_path: Path, gate: Path) -> None:
    tracker = MLflowTracker()
    tracker.start()
    assert tracker.finish().complete
    gate.touch()  # the end has not waited for it
    assert tracker._process is not None
    assert tracker._process.wait(LIMIT) == 0
    assert not list(tmp_path.iterdir())


def test_two_commands_make_one_database(tmp_path: Path) -> None:
    trackers = [MLflowTracker(wait=LIMIT), MLflowTracker(wait=LIMIT)]
    for number, tracker in enumerate(trackers):
        work_dir = folder(tmp_path, str(number))
        tracker.open(work_dir, RunInfo(name=str(number)))
        with Journal(work_dir) as journal:
            journal.metrics(1, {"loss": 1.0})
            journal.status("FINISHED")
    runs = [tracker.finish().runs[0] for tracker in trackers]
    assert all(run.complete for run in runs)
    assert runs[0].experiment_id == runs[1].experiment_id
    assert len(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs([str(runs[0].experiment_id)])) == 2


TRAINER = """
import sys
from trainyard.track import Journal, MLflowTracker, RunInfo
tracker = MLflowTracker()
tracker.start()
tracker.open(sys.argv[1], RunInfo(name="killed"))
journal = Journal(sys.argv[1])
journal.status("RUNNING")
print(tracker._process.pid, flush=True)
step = 0
while True:
    step += 1
    journal.metrics(step, {"loss": 1 / step})
    if step == 3000:
        print("here", flush=True)
        sys.stdin.read()
"""


def test_a_killed_trainer(
    uri: str, tmp_path: Path, environment: dict[str, str], journaled: Journaled, stored: Stored
) -> None:
    work_dir = folder(tmp_path)
    command = [sys.executable, "-c", TRAINER, str(work_dir)]
    with Forked(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        shipper = int(trainer.stdout.readline())
        trainer.stdout.readline()
        trainer.kill()
    until(lambda: not Path(f"/proc/{shipper}").exists())
    state = Shipped.load(work_dir, uri)
    assert state.run_id is not None
    assert MlflowClient(uri).get_run(state.run_id).info.status == "KILLED"
    assert len(journaled(work_dir)) == 3000
    assert stored(uri, state.run_id) == journaled(work_dir)


def test_a_killed_shipper_is_replaced(uri: str, tmp_path: Path, journaled: Journaled, stored: Stored) -> None:
    first, second = folder(tmp_path, "first"), folder(tmp_path, "second")
    tracker = MLflowTracker(wait=LIMIT)
    tracker.open(first, RunInfo(name="first"))
    with Journal(first) as journal:
        journal.metrics(1, {"loss": 1.0})
        until(lambda: (first / FILE).exists())
        for step in range(2, 5000):
            journal.metrics(step, {"loss": 1.0})
        os.kill(pid_of(tracker), signal.SIGKILL)
        os.waitid(os.P_PID, pid_of(tracker), os.WEXITED | os.WNOWAIT)
        journal.status("FINISHED")
    tracker.close(first)
    tracker.open(second, RunInfo(name="second"))
    with Journal(second) as journal:
        journal.metrics(1, {"loss": 1.0})
        journal.status("FINISHED")
    shipment = tracker.finish()
    assert shipment.complete
    assert [run.name for run in shipment.runs] == ["first", "second"]
    for run in shipment.runs:
        points = stored(uri, str(run.run_id))
        assert points == journaled(run.work_dir)
        assert all(len(values) == 1 for values in points.values())


FORKING = """
import os, sys, time
from pathlib import Path
from trainyard.track import Journal, MLflowTracker, RunInfo
def train(work_dir):
    tracker.open(work_dir, RunInfo(name=work_dir))
    with Journal(work_dir) as journal:
        journal.metrics(1, {"loss": 1.0})
        journal.status("FINISHED")
tracker = MLflowTracker(wait=600)
tracker.start()
child = os.fork()
if child == 0:
    train(sys.argv[1])
    tracker.finish()
    Path(sys.argv[1], "finished").touch()
    time.sleep(3600)
while not Path(sys.argv[1], "finished").exists():
    time.sleep(0.05)
train(sys.argv[2])
print(tracker.finish())
os.kill(child, 9)
"""


def test_a_fork_shares_the_shipper(uri: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """It can name runs, cannot end the shipper, and does not keep it from ending."""
    work_dirs = [folder(tmp_path, name) for name in ("child", "parent")]
    command = [sys.executable, "-c", FORKING, *map(str, work_dirs)]
    done = forked.run(command, env=environment, timeout=LIMIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    assert [Shipped.load(work_dir, uri).sent_status for work_dir in work_dirs] == ["FINISHED", "FINISHED"]


FORKER = """
import os, sys
from pathlib import Path
from trainyard.track.shipper.__main__ import configure
configure()
from trainyard.track.shipped import summary
from trainyard.track.shipper.fleet import Fleet
from trainyard.track.shipper.store import warm
warm(sys.argv[2])
print(0, flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        fleet = Fleet()
        fleet.open(Path(sys.argv[1]))
        fleet.round()
        os._exit(0 if summary(Path(sys.argv[1])).complete else 1)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_at_random_moments(
    uri: str, new_run: Callable[..., Path], environment: dict[str, str], journaled: Journaled, stored: Stored
) -> None:
    """A shipper that is killed again and again, and each time followed by another, while the journal grows."""
    chance = random.Random()
    work_dir = new_run(uri, params={f"p{number}": "1" for number in range(150)})
    (work_dir / "a.txt").write_text("a")
    command = [sys.executable, "-c", FORKER, str(work_dir), uri]
    killed, step = 0, 0
    with (
        Journal(work_dir) as journal,
        Forked(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as forker,
    ):
        assert forker.stdin is not None
        assert forker.stdout is not None
        forker.stdout.readline()
        while True:
            for _ in range(150):
                step += 1
                journal.metrics(step, {"loss": 1 / step, "lr": 0.1})
            journal.array("confusion", step, [[step]])
            journal.artifact("a.txt")
            forker.stdin.write("\n")
            child = int(forker.stdout.readline())
            if killed < 12:
                time.sleep(chance.uniform(0.0, 0.25))
                os.kill(child, signal.SIGKILL)
            forker.stdin.write("\n")
            status = int(forker.stdout.readline())
            killed += status == -signal.SIGKILL
            if killed >= 12 and status == 0:
                break
        forker.stdin.close()
    client = MlflowClient(uri)
    (run,) = client.search_runs([str(Shipped.load(work_dir, uri).experiment_id)])
    points = stored(uri, run.info.run_id)
    assert points == journaled(work_dir)
    assert len(points) == 2 * step
    assert all(len(values) == 1 for values in points.values())
    assert len(run.data.params) == 150
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["a.txt", "arrays"]


class _Failing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def no_servers() -> Iterator[dict[str, str]]:
    """What may be found where a server should be: nothing, silence, and errors."""
    with socket.create_server(("127.0.0.1", 0)) as silent, HTTPServer(("127.0.0.1", 0), _Failing) as failing:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            nothing = probe.getsockname()[1]
        thread = threading.Thread(target=failing.serve_forever, daemon=True)
        thread.start()
        yield {
            "nothing": f"http://127.0.0.1:{nothing}",
            "silence": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "errors": f"http://127.0.0.1:{failing.server_port}",
        }
        failing.shutdown()


def test_training_does_not_notice(
    no_servers: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    gate: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    trackers = {}
    for name, uri in no_servers.items():
        work_dir = folder(tmp_path, name)
        trackers[name] = tracker = MLflowTracker(uri=uri, wait=LIMIT)
        tracker.open(work_dir, RunInfo(name=name))
        with Journal(work_dir) as journal:
            for step in range(100):
                journal.metrics(step, {"loss": 1.0})
            journal.status("FINISHED")
    gate.touch()
    shipments = {name: tracker.finish() for name, tracker in trackers.items()}
    for name, shipment in shipments.items():
        assert not shipment.complete
        assert not shipment.running
        (run,) = shipment.runs
        assert (run.shipped, run.unshipped) == (0, 101)
        assert f"101 records of run {name} are not in MLflow ({no_servers[name]}) yet." in str(shipment)
        assert f"trainyard sync {run.work_dir}" in str(shipment)
        assert sum(1 for _ in read(run.work_dir / "metrics.jsonl")) == 101
    assert "refused" in str(shipments["nothing"])
    assert "MLflow did not respond." in str(shipments["silence"])
    assert "500" in str(shipments["errors"])
    assert capfd.readouterr().err == ""


def test_a_shipper_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_dir = folder(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    tracker = MLflowTracker()
    tracker.start()
    tracker.open(work_dir, RunInfo(name="a"))
    with Journal(work_dir) as journal:
        journal.status("FINISHED")
    shipment = tracker.finish()
    assert not shipment.complete
    assert "The shipper could not be started" in str(shipment)


def test_a_shipper_that_breaks_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "mlflow.py").write_text("raise ImportError('mlflow is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    work_dir = folder(tmp_path)
    tracker = MLflowTracker(wait=LIMIT)
    tracker.open(work_dir, RunInfo(name="a"))
    shipment = tracker.finish()
    assert not shipment.complete
    assert "mlflow is broken" in str(shipment)


def test_waiting_has_an_end(uri: str, tmp_path: Path) -> None:
    """What is not shipped by then goes on in the background."""
    work_dir = folder(tmp_path)
    lock = ShipperLock(work_dir)
    assert lock.acquire()
    tracker = MLflowTracker(wait=0.1)
    tracker.open(work_dir, RunInfo(name="a"))
    with Journal(work_dir) as journal:
        journal.metrics(1, {"loss": 1.0})
        journal.status("FINISHED")
    shipment = tracker.finish()
    assert shipment.running
    assert "Another shipper, such as that of an earlier start, is uploading this run." in str(shipment)
    assert "in the background" in str(shipment)
    lock.release()
    assert tracker._process is not None
    assert tracker._process.wait(LIMIT) == 0
    assert Shipped.load(work_dir, uri).sent_status == "FINISHED"


def test_a_shipper_that_logs_no_model_does_not_import_torch() -> None:
    program = (
        "import sys; from trainyard.track.shipper.fleet import Fleet; from trainyard.track.shipper.store import warm; "
        "warm('sqlite:///mlflow.db'); assert 'torch' not in sys.modules, 'imported'"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
