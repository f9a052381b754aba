"""Time of an iteration when every iteration is logged to MLflow, compared with no logging.

The MLP is that of the case `step`. "No logging" has no logger, journal points within an epoch, checkpoints or MLflow;
the other Trainyard rows add only `hook.logger.interval=1` and the tracker. "SQLite" uploads to a file, and "HTTP" to
`mlflow server` on the same machine. `mlflow.log_metric` is a plain loop with one call per iteration.

**Result:** training does not wait for MLflow. The points take a tenth of the MLP's iteration, and at most a few percent
of the ResNet's.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import ours
import torch
from measure import Comparison, Session, Table, Turn, take_turns
from work import RATE, Work

HOOKS = {name: ours.DEFAULT_HOOKS[name] for name in ("runtime_info", "timer", "param_schedule")}
EVERY = {**HOOKS, "logger": {"_target_": "trainyard.hooks.Logger", "interval": 1}}


def tables(session: Session) -> Iterator[Table]:
    works = {
        "an MLP": Work(epochs=session.size(100, 2)),
        "a small ResNet": Work("images", session.size(1600, 128), 16, 1),
    }
    with server(session.folder) as uri:
        for name, work in works.items():
            side = partial(ours.trainyard, work, resident=True)
            sides = {
                "no logging": partial(side, hooks=HOOKS, uri=None),
                "journal alone": partial(side, hooks=EVERY, uri=None),
                "SQLite": partial(side, hooks=EVERY),
                "HTTP": partial(side, hooks=EVERY, uri=uri),
                "plain PyTorch, mlflow.log_metric": partial(
                    log_metric, replace(work, samples=work.batch * 50, epochs=1)
                ),
            }
            values, failed = take_turns(session, sides, turns=3)
            reach = {"journal alone": 1.03, "SQLite": 1.02, "HTTP": 1.02}
            comparisons = [
                Comparison(side, "no logging", reach.get(side))
                for side in ("journal alone", "SQLite", "HTTP", "plain PyTorch, mlflow.log_metric")
            ]
            yield Table(f"Logging every iteration of {name}", "µs per iteration", values, failed, comparisons)


@contextmanager
def log_metric(work: Work) -> Iterator[Turn]:
    """Yield a loop written by hand that logs like MLflow's own tutorial, into a SQLite file."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment("bench")
        loader, criterion = work.loader(), work.loss

        def turn() -> float:
            model = work.net()
            optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
            with mlflow.start_run():
                begin = work.now()
                for step, (x, y) in enumerate(loader):
                    optimizer.zero_grad()
                    loss = criterion(model(x), y)
                    loss.backward()
                    optimizer.step()
                    mlflow.log_metric("loss", loss.item(), step=step)
                return work.each(work.now() - begin)

        yield turn


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run `mlflow server` on a free port of this machine, with a SQLite file; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *store], stdout=log, stderr=log, cwd=folder)
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1.0).close()
                break
            except OSError:
                if process.poll() is not None:
                    break
                time.sleep(0.5)
        else:
            raise TimeoutError("mlflow server does not answer")
        if process.poll() is not None:
            raise RuntimeError(f"mlflow server ended: {(folder / 'server.log').read_text()[-200:]}")
        yield uri
    finally:
        process.terminate()
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
