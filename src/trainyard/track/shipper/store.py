"""What the shipper says to MLflow. The only module that imports mlflow."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import json
import os
import posixpath
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from trainyard.track.run_info import RunInfo
from trainyard.track.shipper.backoff import Backoff
from trainyard.track.uri import sqlite_file, with_password, without_password

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

# The server's limits: https://mlflow.org/docs/latest/rest-api.html#request-limits
MAX_METRICS = 1000
MAX_PARAMS_OR_TAGS = 100
MAX_NAME = 250
MAX_PARAM = 6000
MAX_TAG = 8000

RUN_TAG = "trainyard.run_id"
_MODEL_TAG = "trainyard.model"
_GIT_TAGS = {"git.commit": "mlflow.source.git.commit", "git.branch": "mlflow.source.git.branch"}

Item = TypeVar("Item", Metric, Param, RunTag)
Note = Callable[[str], None]


class RunLostError(Exception):
    """The store no longer has this run, or has it in its bin: no record of it can be shipped."""

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


class LeftOutError(Exception):
    """Something that will never be shipped, however often it is tried; it is left out, and this says why."""


def warm(uri: str) -> None:
    """Loads what opening `uri` will need, and opens nothing."""
    if sqlite_file(uri) is not None:
        with contextlib.suppress(ImportError):
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


@functools.cache
def warm_model() -> None:
    """Loads what logging a model will need: the first model takes two seconds, the next ones some 70 ms."""
    import mlflow.pytorch
    import torch

    with tempfile.TemporaryDirectory() as folder:
        mlflow.pytorch.save_model(
            torch.nn.Identity(),
            f"{folder}/model",
            signature=False,
            pip_requirements=["torch"],
            serialization_format="pickle",
        )


class Stores:
    """The stores of a process by URI, each opened once, and each with its own patience."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}
        self._backoffs: dict[str, Backoff] = {}

    def get(self, uri: str) -> Store:
        if uri not in self._stores:
            self._stores[uri] = Store(uri)
        return self._stores[uri]

    def backoff(self, uri: str) -> Backoff:
        return self._backoffs.setdefault(uri, Backoff())

    def close(self) -> None:
        """Leaves every SQLite database whole in its one file, as whoever copies it expects."""
        for database in filter(None, map(sqlite_file, self._stores)):
            with contextlib.suppress(sqlite3.Error):  # another process may be writing: it will do this
                _execute(database, "PRAGMA wal_checkpoint(TRUNCATE)")


class Store:
    """One MLflow tracking store.

    Args:
        uri: as `run.json` has it.

    Raises:
        Exception: whatever MLflow raises where the store cannot be reached; trying again later may help.
    """

    def __init__(self, uri: str) -> None:
        uri = with_password(uri)
        database = sqlite_file(uri)
        # MLflow puts the artifacts of a new database into `mlruns` in the current folder: that is to be the database's.
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
            try:
                _execute(database, "PRAGMA journal_mode=WAL")  # readers and a writer don't wait for each other
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise  # here it says what is wrong; MLflow would try for minutes
        with _alone_in(database.parent) if database else contextlib.nullcontext():
            self._client = MlflowClient(uri)
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] = {}

    def run(self, info: RunInfo, run_id: str | None) -> tuple[str, str]:
        """The MLflow run of `info`, found or made, as (experiment id, run id).

        Args:
            run_id: MLflow's own, where it is known.

        Raises:
            RunLostError: it is known, and gone or deleted.
        """
        tags = self._tags(info)
        if run_id is not None:
            experiment_id = self.check(run_id)
        else:
            experiment_id = self._experiment(info.experiment or "Default")
            run_id = self._find(experiment_id, info.id)
        if run_id is None:
            start = int(info.start_time * 1000)
            run_id = self._client.create_run(experiment_id, start, tags, run_name=info.name).info.run_id
        else:
            self.log(run_id, tags=tags)
        self._runs[info.id] = run_id
        return experiment_id, run_id

    def check(self, run_id: str) -> str:
        """The run's experiment id. Raises RunLostError where it is gone or deleted."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise RunLostError(f"MLflow has no run {run_id} any more.", gone=True) from error
            raise
        if run.info.lifecycle_stage != "active":
            raise RunLostError(f"The run {run_id} was deleted in MLflow; restore it there to go on.", gone=False)
        return str(run.info.experiment_id)

    def log(
        self,
        run_id: str,
        *,
        metrics: Sequence[tuple[str, float, float, int]] = (),
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        note: Note = print,
    ) -> None:
        """Logs all of them; what is there already stays as it is. What MLflow refuses is left out, with a note.

        Args:
            metrics: name, value, unix seconds, step.
        """
        points = [Metric(clean_name(name), value, int(at * 1000), step) for name, value, at, step in metrics]
        settings = [Param(clean_name(key), clean_text(value, MAX_PARAM)) for key, value in (params or {}).items()]
        marks = [RunTag(clean_name(key), clean_text(value, MAX_TAG)) for key, value in (tags or {}).items()]
        self._log(run_id, "metrics", points, MAX_METRICS, note)
        self._log(run_id, "params", settings, MAX_PARAMS_OR_TAGS, note)
        self._log(run_id, "tags", marks, MAX_PARAMS_OR_TAGS, note)

    def artifact(self, run_id: str, path: Path, to: str) -> None:
        """Uploads a file or folder. Raises LeftOutError where it is gone or refused."""
        try:
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), posixpath.join(to, path.name))
            elif path.exists():
                self._client.log_artifact(run_id, str(path), to or None)
            else:
                raise LeftOutError("the file is gone")
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise LeftOutError(_first_line(error)) from error
            raise
        except OSError as error:
            # Of a web server's answers, these say that it will never take the file (413: it is too large).
            answer = getattr(getattr(error, "response", None), "status_code", 0)
            if 400 <= answer < 500 and answer not in (401, 403, 408, 429):
                raise LeftOutError(str(error)) from error
            if isinstance(error, PermissionError) and error.filename == str(path):
                raise LeftOutError(str(error)) from error
            raise

    def array(self, run_id: str, name: str, content: dict[str, Any]) -> None:
        """Writes `arrays/<name>.json`; numbers in `content` must be finite."""
        self._client.log_text(run_id, json.dumps(content, allow_nan=False), f"arrays/{clean_name(name)}.json")

    def status(self, run_id: str, status: str, at: float) -> None:
        if status == "RUNNING":
            self._client.update_run(run_id, status)
        else:
            self._client.set_terminated(run_id, status, int(at * 1000))

    def model(
        self, experiment_id: str, run_id: str, build: Callable[[], tuple[nn.Module, np.ndarray | None]], stamp: str
    ) -> None:
        """Logs the run's model, which `mlflow.pytorch.load_model("runs:/<run_id>/model")` opens.

        It says what `mlflow.pytorch.log_model` says, in the client's words: that function reads back the whole history
        of every metric, and would log the model again if a kill came between its end and our note of it.

        Args:
            build: gives the module and an input example.
            stamp: what tells this model from another of the same run.

        Raises:
            LeftOutError: it cannot be built, or this MLflow server knows no models.
        """
        import mlflow.pytorch
        import torch
        from mlflow.models import Model

        try:
            logged = self._client.search_logged_models(
                [experiment_id], f"source_run_id = '{run_id}' AND tags.`{_MODEL_TAG}` = '{stamp}'"
            )
            if logged and logged[0].status == "READY":
                return
            tags = {_MODEL_TAG: stamp}
            model = logged[0] if logged else self._client.create_logged_model(experiment_id, "model", run_id, tags)
        except MlflowException as error:
            if error.error_code == "ENDPOINT_NOT_FOUND":
                raise LeftOutError("this MLflow server keeps no models; it needs MLflow 3") from error
            raise
        try:
            net, example = build()
            net = net.cpu().eval()
        except Exception as error:
            raise LeftOutError(f"{type(error).__name__}: {error}") from error
        with tempfile.TemporaryDirectory() as folder:
            # Pickled, as torch users expect: a real module of its own class. "pt2", which needs no code to load, takes
            # 2 s to trace a small model, knows one input only, and cannot take every model.
            mlflow.pytorch.save_model(
                net,
                f"{folder}/model",
                mlflow_model=Model(
                    artifact_path=model.artifact_location,
                    run_id=run_id,
                    model_uuid=model.model_id,
                    model_id=model.model_id,
                ),
                signature=_signature(net, example),
                input_example=example,
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy", "cloudpickle"],
                serialization_format="pickle",
            )
            self._client.log_model_artifacts(model.model_id, f"{folder}/model")
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    self._experiments[name] = self._client.create_experiment(name)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    return self._experiment(name)  # another process was faster
            elif found.lifecycle_stage != "active":
                raise MlflowException(
                    f"The experiment {name} was deleted in MLflow: restore it there, or choose another name."
                )
            else:
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _find(self, experiment_id: str, own_id: str) -> str | None:
        found = self._client.search_runs(
            [experiment_id], f"tags.`{RUN_TAG}` = '{own_id}'", ViewType.ACTIVE_ONLY, max_results=1
        )
        return found[0].info.run_id if found else None

    def _tags(self, info: RunInfo) -> dict[str, str]:
        tags = {_GIT_TAGS.get(key, key): value for key, value in info.facts.items()}
        tags |= {"mlflow.source.type": "LOCAL", RUN_TAG: info.id}
        if info.source:
            tags["mlflow.source.name"] = info.source
        if info.user:
            tags["mlflow.user"] = info.user
        if info.parent:
            tags["trainyard.parent_id"] = info.parent
            parent = self._runs.get(info.parent) or self._find(
                self._experiment(info.experiment or "Default"), info.parent
            )
            if parent:
                tags["mlflow.parentRunId"] = parent
        tags |= info.tags
        return {clean_name(key): clean_text(value, MAX_TAG) for key, value in tags.items()}

    def _log(self, run_id: str, kind: str, items: Sequence[Item], limit: int, note: Note) -> None:
        for start in range(0, len(items), limit):
            self._log_batch(run_id, kind, items[start : start + limit], note)

    def _log_batch(self, run_id: str, kind: str, items: Sequence[Item], note: Note) -> None:
        try:
            self._client.log_batch(run_id, **{kind: items})  # type: ignore[arg-type]
        except MlflowException as error:
            # BAD_REQUEST, its neighbour, also stands for a database that had no connection free: not for good.
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            self.check(run_id)
            if len(items) == 1:
                note(f"{kind} {items[0].key}: {_first_line(error)}")
                return
            middle = len(items) // 2
            self._log_batch(run_id, kind, items[:middle], note)
            self._log_batch(run_id, kind, items[middle:], note)


def clean_name(name: str) -> str:
    """The nearest name that MLflow takes for a metric, param or tag: a path of letters, digits and `_-. :`."""
    name = re.sub(r"[^/\w.\- :]", "_", name.encode(errors="replace").decode())
    parts = [part for part in posixpath.normpath(name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:MAX_NAME].rstrip("/") or "_"


def clean_text(text: str, limit: int) -> str:
    """`text` without what databases refuse, cut to `limit` characters."""
    text = text.replace("\0", "").encode(errors="replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(error: BaseException) -> str:
    """An error in one line."""
    return without_password(f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """In the folder, and no other shipper in it: MLflow makes the tables of a new database, and two at once collide."""
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.chdir(folder):
            yield
    finally:
        os.close(lock)


def _execute(database: Path, pragma: str) -> None:
    with contextlib.closing(sqlite3.connect(database, timeout=1.0)) as connection:
        connection.execute(pragma)


def _signature(net: nn.Module, example: np.ndarray | None) -> Any:
    """What goes in and comes out, where both are one array; False: MLflow is not to try for itself."""
    import torch
    from mlflow.models import infer_signature

    if example is None:
        return False
    try:
        with torch.inference_mode():
            output = net(torch.from_numpy(example))
        return infer_signature(example, output.numpy())
    except Exception:  # the user's own code; the model is as good without
        return False
