"""`trainyard doctor`: whether this installation can train and track."""

from __future__ import annotations

import base64
import http.client
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import trainyard
from trainyard.cli.output import as_json, print_json, size
from trainyard.errors import ConfigError, counted
from trainyard.redaction import redact

_PACKAGES = ("torch", "hydra-core", "omegaconf", "mlflow", "numpy")
_LITTLE_SPACE = 1e9  # bytes
_EXPERIMENTS = "/api/2.0/mlflow/experiments/search?max_results=1"
_PATIENCE = 5.0  # seconds for a server to answer


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: the name of the check.
        ok: whether it can be used.
        text: the result, or what to do.
    """

    name: str
    ok: bool
    text: str


@click.command("doctor")
@as_json
def command(json_: bool) -> None:
    """Check versions, device, CUDA graphs, MLflow and disk space, and train one step.

    The exit status is 1 if a check fails.
    """
    findings = []
    for check in (_versions, _device, _tracking, _disk, _training):
        for finding in check():
            findings.append(finding)
            if not json_:
                click.echo(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.name}: {finding.text}")
    if json_:
        print_json([vars(finding) for finding in findings])
    if not all(finding.ok for finding in findings):
        sys.exit(1)


def _versions() -> Iterator[Finding]:
    versions = [f"trainyard {trainyard.__version__}", f"Python {platform.python_version()}"]
    missing = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    absent = f"; not installed: {', '.join(missing)}" if missing else ""
    yield Finding("versions", not missing, ", ".join(versions) + absent)


def _device() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not torch.cuda.is_available():
        yield Finding("device", True, f"CPU, {counted(cores or 1, 'core')}; no CUDA device")
        return
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("device", True, f"{', '.join(names)}; CUDA {torch.version.cuda}; {counted(cores or 1, 'CPU core')}")
    yield _try("CUDA graphs", _replay)


def _replay() -> str:
    """Capture an operation into a CUDA graph and replay it."""
    import torch

    value = torch.ones(4, device="cuda")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        value.mul(2)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = value * 2
    value.fill_(3)
    graph.replay()
    if result.tolist() != [6.0] * 4:
        raise RuntimeError(
            f"a replayed graph returned {result.tolist()} instead of [6.0, 6.0, 6.0, 6.0]: use capture=false"
        )
    return "captured and replayed"


def _tracking() -> Iterator[Finding]:
    from trainyard.track.uri import resolve, sqlite_file

    try:
        uri = resolve(None, Path.cwd())
    except ConfigError as error:
        yield Finding("MLflow", False, str(error))
        return
    if file := sqlite_file(uri):
        there = next(path for path in (file, *file.parents) if path.exists())  # training creates missing folders
        ok = os.access(there, os.W_OK) and (there.is_file() if there == file else there.is_dir())
        advice = "" if ok else " is not writable; set MLFLOW_TRACKING_URI to another sqlite:///FILE.db"
        yield Finding("MLflow", ok, f"{file}{advice}")
    elif uri.startswith(("http://", "https://")):
        yield _try("MLflow", lambda: _ask(uri))
    else:
        yield Finding("MLflow", True, redact(uri))


def _ask(uri: str) -> str:
    """Ask a server for one experiment, with the credentials of MLflow's environment variables."""
    parts = urllib.parse.urlsplit(uri)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or urllib.parse.unquote(parts.username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or urllib.parse.unquote(parts.password or "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(f"{parts.scheme}://{host}{parts.path}{_EXPERIMENTS}")
    if user:
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
    elif token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{redact(uri)} refused the request: {error.code} {error.reason}") from error
    except OSError as error:  # a URLError, or an error while the response is read
        raise RuntimeError(f"{redact(uri)} does not respond: {getattr(error, 'reason', error)}") from error
    except http.client.HTTPException as error:  # the response is not complete, or not of HTTP
        raise RuntimeError(f"{redact(uri)} could not be queried: {error!r}") from error
    except ValueError as error:
        raise RuntimeError(f"{redact(uri)} is not an MLflow server: its response is not JSON") from error
    return f"{redact(uri)} responds"


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{size(free)} free on the disk of this folder"
    enough = free > _LITTLE_SPACE
    advice = "" if enough else f"; remove files until more than {size(_LITTLE_SPACE)} is free"
    yield Finding("disk", enough, f"{text}{advice}")


def _training() -> Iterator[Finding]:
    yield _try("training", _train)


def _train() -> str:
    """Train one iteration in a folder that is removed, without tracking."""
    with tempfile.TemporaryDirectory(prefix="trainyard-doctor-") as folder:
        overrides = [
            "loop=iter",
            "loop.max_iters=1",
            "loop.val_interval=1",
            "tracker=none",
            f"hydra.run.dir={folder}/run",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "trainyard.train", *overrides],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip() or f"the training ended with status {done.returncode}")
    return "one step, a validation and a checkpoint"


def _try(name: str, check: Callable[[], str]) -> Finding:
    """Return the finding of a check that raises an error if it fails."""
    try:
        return Finding(name, True, check())
    except Exception as error:
        text: Any = str(error).strip() or type(error).__name__
        return Finding(name, False, redact(text))
