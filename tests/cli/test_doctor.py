"""`trainyard doctor`."""

import base64
import shutil
import threading
from collections.abc import Iterator
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.cli import doctor

LOGIN = f"Basic {base64.b64encode(b'bob:secret').decode()}"


class Guarded(BaseHTTPRequestHandler):
    """An MLflow server as far as `doctor` asks one, behind a login."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == LOGIN
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b'{"experiments": []}' if "/api/2.0/mlflow/experiments/search" in self.path else b"<html>")

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Guarded) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def tracking(monkeypatch: pytest.MonkeyPatch, uri: str) -> doctor.Finding:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (found,) = doctor._tracking()
    return found


def test_a_server_is_asked_with_the_login_of_the_environment(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    found = tracking(monkeypatch, f"http://bob:secret@{server}")
    assert found.ok
    assert "secret" not in found.text


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("http://bob:wrong@{server}", "refused the request: 401"),
        ("http://127.0.0.1:9", "does not respond"),
        ("file:///tmp/x", "Use sqlite:///mlflow.db"),
        ("sqlite:////dev/null/all.db", "/dev/null/all.db is not writable"),
        ("sqlite:////dev", "to another sqlite:///FILE.db"),
    ],
)
def test_what_cannot_track_is_wrong(monkeypatch: pytest.MonkeyPatch, server: str, uri: str, text: str) -> None:
    found = tracking(monkeypatch, uri.format(server=server))
    assert text in f"{found.name} {found.text}"
    assert "wrong" not in found.text
    assert not found.ok


def test_a_database_may_be_in_a_folder_that_training_creates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "mlflow.db"
    assert tracking(monkeypatch, f"sqlite:///{file}") == doctor.Finding("MLflow", True, str(file))
    assert not file.parent.exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TimeoutError("timed out"), "does not respond: timed out"),
        (IncompleteRead(b"[", 9), "could not be queried: IncompleteRead(1 bytes read, 9 more expected)"),
    ],
)
def test_a_server_that_stops_within_its_response_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def stops(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("urllib.request.urlopen", stops)
    assert tracking(monkeypatch, "http://127.0.0.1:9").text == f"http://127.0.0.1:9 {told}"


def test_an_installation_that_works_is_ok_and_leaves_nothing(
    trainyard: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    status, findings, _ = trainyard("doctor", "--json", cwd=tmp_path)
    assert {finding["name"] for finding in findings} >= {"versions", "device", "MLflow", "disk", "training"}
    assert [finding for finding in findings if not finding["ok"]] == []
    assert status == 0
    assert list(tmp_path.iterdir()) == []


def test_anything_wrong_is_status_1(trainyard: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_training", lambda: iter(()))  # what it takes is tried above
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    status, text, _ = trainyard("doctor", cwd=tmp_path)
    assert status == 1
    assert "WRONG  MLflow: http://127.0.0.1:9 does not respond" in text


def test_a_nearly_full_disk_is_reported_with_the_space_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9e8))
    (found,) = doctor._disk()
    assert not found.ok
    assert found.text == "900.0 MB free on the disk of this folder; remove files until more than 1.0 GB is free"
