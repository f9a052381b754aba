"""No credential reaches a file, a log line, a tag, a param or an artifact."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from waiting import LIMIT

CANARY = "canary-7f3a"
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "HF_TOKEN": CANARY,
    "NVIDIA_API_KEY": CANARY,
    "TORCH_HUB_TOKEN": CANARY,
    "MLFLOW_TRACKING_PASSWORD": CANARY,
}
FROM_VARIABLES = ["+hub.hf_token=${oc.env:HF_TOKEN}", "+hub.uri='http://bob:${oc.env:HF_TOKEN}@host'"]


def holding(folder: Path) -> list[str]:
    """Return the files that hold the canary, or have it in their names."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in found if CANARY.encode() in path.read_bytes() or CANARY in str(path)]


@pytest.mark.parametrize("flags", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("override", "key"),
    [
        (f"tracker.uri=http://bob:{CANARY}@127.0.0.1:9", "tracker.uri"),
        (f"+hub.api_key={CANARY}", "hub.api_key"),
        (f"+hub={{api_key: {CANARY}}}", "hub.api_key"),
    ],
)
def test_a_credential_in_an_override_is_refused(
    command: Any, tmp_path: Path, flags: list[str], override: str, key: str
) -> None:
    status, said = command(*flags, override, quick=[])
    assert status == 2
    assert f"{key}: '" in said
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert CANARY not in said
    assert not list((tmp_path / "folder").rglob("*"))


def test_a_credential_in_a_file_is_refused(command: Any, tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "tracker"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text(
        f"_target_: trainyard.track.MLflowTracker\nuri: http://bob:{CANARY}@127.0.0.1:9\nwait: 0\n"
    )
    status, said = command("--config-dir", str(folder.parent), "tracker=own", quick=[])
    assert status == 2
    assert "tracker.uri: 'http://bob:***@127.0.0.1:9' is invalid" in said
    assert CANARY not in said
    assert not list((tmp_path / "folder").rglob("*"))


def test_a_run_to_a_server_with_a_password(train: Any, tmp_path: Path) -> None:
    uri = {"MLFLOW_TRACKING_URI": f"http://bob:p@ss/{CANARY}@127.0.0.1:9/", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = train("tracker=mlflow", "tracker.wait=0.5", "hydra.run.dir=run", *FROM_VARIABLES, env=ENVIRONMENT | uri)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert holding(tmp_path) == []
    assert "http://bob:***@127.0.0.1:9" in (tmp_path / "run" / "run.json").read_text()
    assert "hf_token: '***'" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_sweep_in_a_database(train: Any, tmp_path: Path) -> None:
    done = train(
        "-m",
        "tracker=mlflow",
        f"tracker.wait={LIMIT}",
        "seed=0,1",
        "hydra.sweep.dir=sweep",
        *FROM_VARIABLES,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert holding(tmp_path) == []
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        # the sweep, its two jobs, and the configuration that both repeat
        assert database.execute("select count(*) from runs").fetchone() == (4,)
