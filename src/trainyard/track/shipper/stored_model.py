"""The model of a run, read from MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trainyard.errors import ConfigError, TrainyardError
from trainyard.redaction import redact
from trainyard.track.shipper.sanitize import first_line
from trainyard.track.uri import resolve, sqlite_file

_ID = re.compile(r"(runs:/)?[0-9a-f]{32}")


def is_run_id(name: str) -> bool:
    """Return whether a name is the ID of a run in MLflow, or `runs:/` followed by an ID."""
    return _ID.fullmatch(name) is not None


def stored_model(run: str, uri: str | None, *, trust: bool) -> Any:
    """Return the module that a run has logged as its model, which MLflow unpickles.

    Args:
        run: the ID of the run.
        uri: the URI of MLflow; see `trainyard.track.uri.resolve`.
        trust: whether the user trusts the run. Everyone who can write to the store can replace its model, so that no
            model in MLflow is recognized as the user's own.

    Raises:
        ConfigError: the database file of the store does not exist.
        TrainyardError: the user does not trust the run, there is no such run, it has no model, its model is a
            `torch.export` program, or the store cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from torch.fx import GraphModule

    where = resolve(uri, Path.cwd())
    accepted = "the ID of a run in MLflow that has logged a model"
    database = sqlite_file(where)
    if database is not None and not database.is_file():  # MLflow would make it
        hint = f"The MLflow database {database} does not exist. Set `uri` to use another store."
        raise ConfigError("run", run, accepted, hint=hint)
    if not trust:
        raise TrainyardError(
            f"The model of the run {run!r} is stored in MLflow ({redact(where)}), and a model in MLflow can run any "
            "code. Pass trust=True if you trust it. The directory of your own run needs no trust=True."
        )
    logged = f"runs:/{run.removeprefix('runs:/')}/model"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(where)
    try:
        found = mlflow.pytorch.load_model(logged, map_location="cpu")
    except MlflowException as error:
        said = first_line(error).rstrip(".")
        raise TrainyardError(
            f"The model of the run {run!r} cannot be loaded from {redact(where)}: {said}. Expected {accepted}."
        ) from error
    finally:
        mlflow.set_tracking_uri(before)
    if isinstance(found, GraphModule):
        raise TrainyardError(
            f"The model of the run {run!r} is a torch.export program (model_format=export), which `trainyard.load` "
            f"does not accept. Load it with mlflow.pyfunc.load_model({logged!r})."
        )
    return found
