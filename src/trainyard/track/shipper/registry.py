"""Registration of a run's model in the MLflow Model Registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from trainyard.errors import TrainyardError
from trainyard.track import journal
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import Shipped
from trainyard.track.shipper.other_runs import AwaitedError
from trainyard.track.shipper.sanitize import first_line
from trainyard.track.shipper.uploads import LeftOutError

if TYPE_CHECKING:
    from trainyard.track.shipper.store import Store, StoredRun

_MODEL = "model"
_TAG = "trainyard.model_id"


def register(store: Store, run: StoredRun, name: str, alias: str, other: Path | None) -> None:
    """Register the model of a run as the next version of `name`, with an alias. The model is never registered twice.

    Args:
        store: the store of the run.
        run: the run.
        name, alias: see `Journal.register`.
        other: the directory of the run to which the model belongs; None: `run`.

    Raises:
        AwaitedError: the model is not there yet, but will be.
        LeftOutError: the model will not be there, or MLflow refuses the name.
    """
    run_id = run.run_id if other is None else _shipped_run(store, other)
    client = store.client
    try:
        models = client.search_logged_models([run.experiment_id], f"source_run_id = '{run_id}' AND name = '{_MODEL}'")
        ready = [model for model in models if model.status == "READY"]
        if not ready:
            raise LeftOutError(f"the run {run_id} has no model to register")
        newest = max(ready, key=lambda model: model.creation_timestamp)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
        found = next((each for each in versions if each.tags.get(_TAG) == newest.model_id), None)
        if found is None:
            tags = {_TAG: newest.model_id}
            source = f"models:/{newest.model_id}"
            with _tracked_at(store.address):
                found = client.create_model_version(
                    name, source, run_id, tags, await_creation_for=0, model_id=newest.model_id
                )
            shown = json.loads(newest.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
            shown = [*shown, {"name": name, "version": found.version}]  # MLflow's page of the model lists these
            client.set_logged_model_tags(newest.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(shown)})
        client.set_registered_model_alias(name, alias, str(found.version))
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND", "PERMISSION_DENIED"):
            raise LeftOutError(first_line(error)) from error
        raise


@contextmanager
def _tracked_at(uri: str) -> Iterator[None]:
    """Set the store temporarily as MLflow's tracking URI, where the client looks for the model that it registers."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _shipped_run(store: Store, work_dir: Path) -> str:
    """Return the MLflow ID of a run whose models are shipped."""
    try:
        info = RunInfo.read(work_dir)
    except TrainyardError as error:
        raise LeftOutError(str(error)) from error
    state = Shipped.load(work_dir, store.uri)
    unread = next(journal.read(work_dir / journal.FILE, state.offset), None)
    if state.run_id is None or unread is not None or any(what.startswith(_MODEL) for what in state.uploads):
        raise AwaitedError(f"The model of {info.name} has not been uploaded yet.")
    return state.run_id
