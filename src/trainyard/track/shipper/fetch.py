"""Downloading a run from MLflow: its config, code, metrics and checkpoints, in the form of a run's directory."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from trainyard.errors import TrainyardError, quoted
from trainyard.redaction import redact
from trainyard.track import Journal, RunInfo, facts
from trainyard.track.journal import FILE, Status
from trainyard.track.shipper.sanitize import first_line
from trainyard.track.shipper.store import RUN_TAG
from trainyard.track.uri import sqlite_file, with_password

_WANTED = ("config.yaml", ".hydra", "checkpoints", *facts.FILES.values())
_FACTS = ("version.", "host.", "cuda.", "git.")
_GIT = {"mlflow.source.git.commit": "git.commit", "mlflow.source.git.branch": "git.branch"}


def fetch(run_id: str, uri: str, folder: Path) -> RunInfo:
    """Download a run from MLflow into an empty folder, which then resembles the directory of the run.

    Args:
        run_id: the ID of the run in MLflow, or the run's own ID.
        uri: the URI of the store.
        folder: the folder for `run.json`, the journal, `config.yaml`, `git.diff` and the checkpoints.

    Raises:
        TrainyardError: the store has no such run, cannot be reached, or its artifacts cannot be read.
    """
    shown = redact(uri)
    database = sqlite_file(uri)
    if database is not None and not database.is_file():  # MLflow would make it
        raise TrainyardError(
            f"The run {quoted(run_id)} cannot be downloaded, because the MLflow database {database} does not exist. "
            "Set `--uri` to use another store."
        )
    try:
        client = MlflowClient(with_password(uri))
        run = find(client, run_id)
    except TrainyardError:
        raise
    except Exception as error:
        said = first_line(error).rstrip(".")
        raise TrainyardError(f"{shown} could not be queried for the run {run_id}: {said}.") from error
    if run is None:
        raise TrainyardError(f"No run in {shown} has the ID {quoted(run_id)}. Set `--uri` to use another store.")
    try:
        there = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        for name in _WANTED:
            if name in there:
                client.download_artifacts(run.info.run_id, name, str(folder))
    except Exception as error:
        said = first_line(error).rstrip(".")
        raise TrainyardError(
            f"The artifacts of the run {run_id} in {shown} cannot be read: {said}. The artifacts "
            f"include the config of the run and are stored at {redact(str(run.info.artifact_uri))}."
        ) from error
    if "config.yaml" not in there:
        raise TrainyardError(
            f"The run {run_id} in {shown} has no artifact config.yaml, so the run cannot be repeated. The artifacts of "
            f"the run are stored at {redact(str(run.info.artifact_uri))}."
        )
    tags = run.data.tags
    info = RunInfo(
        name=run.info.run_name or run_id,
        id=tags.get(RUN_TAG, run.info.run_id),
        params=dict(run.data.params),
        tags={"overrides": tags.get("overrides", "")},
        facts={_GIT.get(key, key): value for key, value in tags.items() if key.startswith(_FACTS) or key in _GIT},
        changes={key: value for key, value in tags.items() if key.rpartition("@")[2].isdecimal()},
        uri=shown,
        start_time=(run.info.start_time or 0) / 1000,
    )
    info.write(folder)
    _write_journal(client, run, folder)
    _write_inputs(run, folder / FILE)
    return info


def _write_inputs(run: Run, journal: Path) -> None:
    """Append the digests of the data sets that are inputs of the run."""
    known = [] if run.inputs is None else run.inputs.dataset_inputs
    inputs = [{"name": each.dataset.name, "digest": each.dataset.digest} for each in known]
    if inputs:
        with journal.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps({'kind': 'inputs', 'time': 0.0, 'inputs': inputs})}\n")


def find(client: MlflowClient, run_id: str) -> Run | None:
    """Return the run with an ID, either MLflow's or the run's own (`RunInfo.id`); None if there is none."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1) if experiments else []
    return found[0] if found else None


def _write_journal(client: MlflowClient, run: Run, folder: Path) -> None:
    """Write the metrics of a run in the form of its journal, in the order of their steps."""
    known: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        if name == "epoch":  # the shipper's: no journal has it
            continue
        for point in client.get_metric_history(run.info.run_id, name):
            infinite = abs(point.value) == sys.float_info.max  # as a database has it
            value = math.copysign(math.inf, point.value) if infinite else point.value
            known.setdefault(point.step, {})[name] = value
    with Journal(folder) as journal:
        journal.status("RUNNING")
        journal.tags({key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")})
        for step in sorted(known):
            journal.metrics(step, known[step])
        ended: dict[str, Status] = {"FINISHED": "FINISHED", "FAILED": "FAILED"}
        journal.status(ended.get(run.info.status, "KILLED"))
