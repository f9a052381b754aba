"""Client of MLflow's tracking store, used by the shipper."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from trainyard.errors import TrainyardError
from trainyard.track.run_info import RunInfo
from trainyard.track.shipper import databases
from trainyard.track.shipper.backoff import Backoff
from trainyard.track.shipper.dataset_inputs import dataset_input
from trainyard.track.shipper.exchange import Exchanges, counted
from trainyard.track.shipper.logged_model import log_model
from trainyard.track.shipper.model_records import PlannedModel
from trainyard.track.shipper.names import Names
from trainyard.track.shipper.sanitize import MAX_PARAM, MAX_RUN_NAME, MAX_TAG, clean_text, first_line
from trainyard.track.shipper.uploads import Artifacts, LeftOutError
from trainyard.track.uri import sqlite_file, with_password

# The server's limits: https://mlflow.org/docs/latest/rest-api.html#request-limits
MAX_ITEMS = 1000  # metrics, params and tags of one request
MAX_PARAMS_OR_TAGS = 100

RUN_TAG = "trainyard.run_id"
MESSAGE_TAG = "trainyard.message"
_GIT_TAGS = {"git.commit": "mlflow.source.git.commit", "git.branch": "mlflow.source.git.branch"}

Item = Metric | Param | RunTag
Note = Callable[[str], None]


@dataclass(frozen=True)
class StoredRun:
    """A run in MLflow.

    Args:
        message: whether the run has the tag `MESSAGE_TAG`.
    """

    run_id: str
    experiment_id: str
    status: str
    artifacts: Artifacts
    message: bool = False


class RunLostError(Exception):
    """The store no longer has this run, or the run is marked as deleted: none of its records can be shipped."""

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


def warm(uri: str) -> None:
    """Load the modules that opening `uri` will need, without opening it."""
    if sqlite_file(uri) is not None:
        with contextlib.suppress(ImportError):
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


class Stores:
    """The stores of a process by URI, each opened once and with its own backoff.

    Args:
        exchanges: the counter of the exchanges with all stores, except for SQLite databases.
    """

    def __init__(self, exchanges: Exchanges | None = None) -> None:
        self._exchanges = exchanges or Exchanges()
        self._stores: dict[str, Store] = {}
        self._backoffs: dict[str, Backoff] = {}

    def get(self, uri: str) -> Store:
        if uri not in self._stores:
            self._stores[uri] = Store(uri, self._exchanges)
        return self._stores[uri]

    def backoff(self, uri: str) -> Backoff:
        return self._backoffs.setdefault(uri, Backoff())

    def close(self) -> None:
        """Close every SQLite database, so that each consists of one file, which can be copied."""
        for database in filter(None, map(sqlite_file, self._stores)):
            with contextlib.suppress(sqlite3.Error):  # another process may be writing: it will do this
                databases.execute(database, "PRAGMA wal_checkpoint(TRUNCATE)")


class Store:
    """One MLflow tracking store.

    Args:
        uri: the URI in `run.json`.
        exchanges: the counter of the exchanges with a server.

    Raises:
        Exception: any error of MLflow if the store cannot be reached; a later attempt may succeed.
    """

    def __init__(self, uri: str, exchanges: Exchanges) -> None:
        self.uri = uri
        self.address = uri = with_password(uri)
        database = sqlite_file(uri)
        if database is None:
            with exchanges.one():
                self._client = counted(MlflowClient(uri), exchanges)
        else:
            self._client = databases.client(uri, database)
        self._experiments: dict[tuple[str | None, str], str] = {}
        self._runs: dict[str, str] = {}

    def run(
        self, info: RunInfo, run_id: str | None, tags: dict[str, str], names: Names, *, new: bool = False
    ) -> StoredRun:
        """Find or create the MLflow run of `info`, with its tags and the given ones.

        Args:
            run_id: the ID in MLflow, if it is known.
            names: the names of the run in MLflow.
            new: whether the run was never shipped before, so that no search is needed.

        Raises:
            RunLostError: the ID is known, but the run is missing or deleted.
        """
        tags = self._tags(info) | tags
        if run_id is not None:
            run = self.check(run_id)
        else:
            experiment_id = self._experiment(info)
            found = None if new else self._find(experiment_id, info.id)
            if found is None:
                start = int(info.start_time * 1000)
                marks = {names("tag", key): clean_text(value, MAX_TAG) for key, value in tags.items()}
                return self._known(
                    info,
                    self._client.create_run(experiment_id, start, marks, run_name=clean_text(info.name, MAX_RUN_NAME)),
                )
            run = found
        self.log(run.info.run_id, names, tags=tags)
        return self._known(info, run)

    def check(self, run_id: str) -> Run:
        """Return the run; raise RunLostError if it is missing or deleted."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise RunLostError(f"MLflow no longer has the run {run_id}.", gone=True) from error
            raise
        if run.info.lifecycle_stage != "active":
            raise RunLostError(
                f"The run {run_id} was deleted in MLflow. To upload its records, restore the run in MLflow.",
                gone=False,
            )
        return run

    def log(
        self,
        run_id: str,
        names: Names,
        *,
        metrics: Sequence[tuple[str, float, float, int]] = (),
        params: Sequence[tuple[str, str]] = (),
        tags: dict[str, str] | None = None,
        note: Note = print,
    ) -> None:
        """Log all values, in as few requests as MLflow allows; existing values do not change.

        Values that MLflow refuses are skipped, with a note.

        Args:
            names: the names of the run in MLflow.
            metrics: the name, value, Unix seconds and step of each.
        """
        points = [Metric(names("metric", name), value, int(at * 1000), step) for name, value, at, step in metrics]
        points.reverse()  # the newest first: MLflow then updates its latest value of each less often
        settings = [Param(names("param", key), clean_text(value, MAX_PARAM)) for key, value in dict.fromkeys(params)]
        marks = [RunTag(names("tag", key), clean_text(value, MAX_TAG)) for key, value in (tags or {}).items()]
        while points or settings or marks:
            items: list[Item] = [*settings[:MAX_PARAMS_OR_TAGS], *marks[:MAX_PARAMS_OR_TAGS]]
            room = MAX_ITEMS - len(items)
            self._log(run_id, [*items, *points[:room]], note)
            del settings[:MAX_PARAMS_OR_TAGS], marks[:MAX_PARAMS_OR_TAGS], points[:room]

    def status(self, run_id: str, status: str, at: float) -> None:
        if status == "RUNNING":
            self._client.update_run(run_id, status)
        else:
            self._client.set_terminated(run_id, status, int(at * 1000))

    def take_back(self, run_id: str, tag: str) -> None:
        """Delete a tag, if the run has it."""
        try:
            self._client.delete_tag(run_id, tag)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    @property
    def client(self) -> MlflowClient:
        """The client of the store."""
        return self._client

    def model(self, run: StoredRun, planned: PlannedModel, names: Names) -> None:
        """Log a model of the run with its metrics: see `log_model`.

        The run already has these points. MLflow stores them once, and assigns them to the model as well.
        """
        model_id = log_model(self._client, run.experiment_id, run.run_id, planned)
        points = [
            Metric(names("metric", name), value, int(at * 1000), step, model_id=model_id)
            for name, value, at, step in planned.metrics[:MAX_ITEMS]
        ]
        if points:
            self._client.log_batch(run.run_id, points)

    def inputs(self, run: StoredRun, inputs: Sequence[dict[str, Any]]) -> None:
        """Log the data sets of the run; raise LeftOutError if this server does not support them."""
        try:
            self._client.log_inputs(run.run_id, [dataset_input(each) for each in inputs])
        except MlflowException as error:
            if error.error_code in ("ENDPOINT_NOT_FOUND", "INVALID_PARAMETER_VALUE"):
                raise LeftOutError(first_line(error)) from error
            raise

    def _known(self, info: RunInfo, run: Run) -> StoredRun:
        self._runs[info.id] = run.info.run_id
        artifacts = Artifacts(self._client, run.info.run_id, run.info.artifact_uri)
        message = MESSAGE_TAG in run.data.tags
        return StoredRun(run.info.run_id, str(run.info.experiment_id), run.info.status, artifacts, message)

    def _experiment(self, info: RunInfo) -> str:
        """Return the ID of a run's experiment, which is created if it is selected by name and does not exist."""
        key = info.experiment_id, info.experiment or "Default"
        if key not in self._experiments:
            number, name = key
            if number is not None:
                found = self._client.get_experiment(number)
            else:
                found = self._client.get_experiment_by_name(name) or self._created(name)
            if found.lifecycle_stage != "active":
                raise TrainyardError(
                    f"The experiment {found.name} was deleted in MLflow. Restore the experiment in MLflow, or "
                    "choose another one with `trainyard sync --experiment`."
                )
            self._experiments[key] = found.experiment_id
        return self._experiments[key]

    def _created(self, name: str) -> Experiment:
        try:
            return self._client.get_experiment(self._client.create_experiment(name))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return found  # another process was faster

    def known(self, experiment_id: str, own_id: str) -> str | None:
        """Return the MLflow ID of the run with this ID; None if there is no such run."""
        if own_id not in self._runs:
            found = self._find(experiment_id, own_id)
            if found is None:
                return None
            self._runs[own_id] = found.info.run_id
        return self._runs[own_id]

    def _find(self, experiment_id: str, own_id: str) -> Run | None:
        found = self._client.search_runs(
            [experiment_id], f"tags.`{RUN_TAG}` = '{own_id}'", ViewType.ACTIVE_ONLY, max_results=1
        )
        return found[0] if found else None

    def _tags(self, info: RunInfo) -> dict[str, str]:
        tags = {_GIT_TAGS.get(key, key): value for key, value in info.facts.items()}
        tags |= {"mlflow.source.type": "LOCAL", RUN_TAG: info.id}
        if info.source:
            tags["mlflow.source.name"] = info.source
        if info.user:
            tags["mlflow.user"] = info.user
        if info.parent:
            tags["trainyard.parent_id"] = info.parent
            if parent := self._runs.get(info.parent) or self.known(self._experiment(info), info.parent):
                tags["mlflow.parentRunId"] = parent
        return tags | info.tags | info.changes

    def _log(self, run_id: str, items: Sequence[Item], note: Note) -> None:
        try:
            self._client.log_batch(
                run_id,
                [item for item in items if isinstance(item, Metric)],
                [item for item in items if isinstance(item, Param)],
                [item for item in items if isinstance(item, RunTag)],
            )
        except MlflowException as error:
            # BAD_REQUEST, its neighbour, also means that a database had no free connection, which is temporary.
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            self.check(run_id)
            if len(items) == 1:
                note(f"{_KINDS[type(items[0])]} {items[0].key}: {first_line(error)}")
                return
            middle = len(items) // 2
            self._log(run_id, items[:middle], note)
            self._log(run_id, items[middle:], note)


_KINDS = {Metric: "metric", Param: "param", RunTag: "tag"}
