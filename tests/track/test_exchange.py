"""A server that hangs or trickles does not keep the shipper, whose trainer has ended."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import forked
import pytest
from waiting import LIMIT, Clock

from trainyard.track import Journal, MLflowTracker, RunInfo
from trainyard.track.shipped import EXIT_STATUS, LOG
from trainyard.track.shipper import exchange
from trainyard.track.shipper.exchange import Exchanges, counted

HANGS, TRICKLES = b"", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000


class Bad:
    """A server that sends the same to everybody: a trickle, a byte at a time, or all at once, or nothing.

    Attributes:
        connections: how often somebody has come.
        left: how often somebody has gone before it had got all.
    """

    def __init__(self, listener: socket.socket, answer: bytes, trickles: bool) -> None:
        self.uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.connections = 0
        self.end = threading.Event()
        self._listener, self._answer, self._trickles = listener, answer, trickles

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._answer_to, args=(connection,), daemon=True).start()

    def _answer_to(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            step = 1 if self._trickles else max(1, len(self._answer))
            for start in range(0, len(self._answer), step):
                connection.sendall(self._answer[start : start + step])
                if self._trickles:
                    self.end.wait(0.1)
            if not self._answer:
                self.end.wait()


@contextmanager
def serving(answer: bytes, *, trickles: bool = False) -> Iterator[Bad]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Bad(listener, answer, trickles)
        threading.Thread(target=server.serve, daemon=True).start()
        try:
            yield server
        finally:
            server.end.set()
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("answer", "trickles"), [(HANGS, False), (TRICKLES, True)])
def test_a_server_that_does_not_come_to_an_end(
    answer: bytes, trickles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipper ends in the middle of its first exchange, while the server goes on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # what one exchange may take
    with serving(answer, trickles=trickles) as server:
        tracker = MLflowTracker(uri=server.uri, wait=LIMIT)
        tracker.open(tmp_path, RunInfo(name="digits"))
        with Journal(tmp_path) as journal:
            journal.metrics(1, {"loss": 1.0})
            journal.status("FINISHED")
        shipment = tracker.finish()
        assert not server.end.is_set()
        assert server.connections <= 2
    assert not shipment.running
    assert tracker._process.returncode == EXIT_STATUS[2]
    assert "2 records of run digits are not in MLflow" in str(shipment)
    assert "MLflow did not respond." in str(shipment)
    assert "did not respond for 1 s" in (tmp_path / LOG).read_text()


def test_sync_with_a_server_that_trickles(
    new_run: Callable[..., Path], fill: Callable[..., None], environment: dict[str, str]
) -> None:
    with serving(TRICKLES, trickles=True) as server:
        fill(new_run(server.uri))
        command = [sys.executable, "-m", "trainyard", "sync", "outputs"]
        done = forked.run(command, cwd=".", env=environment | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}, timeout=LIMIT)
        assert not server.end.is_set()
    assert done.returncode == 1
    assert "MLflow did not respond for 1 s. Try again later." in done.stdout


def test_what_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    exchanges = Exchanges()
    clock.now = 100.0
    assert exchanges.waited == 0.0
    for _ in range(2):
        with suppress(OSError), exchanges.one():
            clock.now += 2.0
            raise OSError
        clock.now += 50.0  # own work
    with exchanges.one():
        clock.now += 1.0
        with exchanges.one():
            assert exchanges.waited == 5.0
        assert exchanges.waited == 5.0
    with exchanges.one():
        assert exchanges.waited == 0.0  # after a success
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x" * exchange.RATE * 3)

    class Client:
        def log_artifacts(self, run: str, path: str) -> None:
            clock.now += 4.0
            assert exchanges.waited == 1.0

    counted(Client(), exchanges).log_artifacts("run", str(tmp_path / "folder"))
