"""Tracking URIs: the MLflow URI and experiment in effect, and URIs as they may be written to disk."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

from trainyard.checks import text
from trainyard.errors import ConfigError, TrainyardError, VariableError
from trainyard.redaction import MASK, escaped, redact

DEFAULT_EXPERIMENT = "trainyard"
_SERVERS = ("http", "https", "databricks")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_FILES = (".db", ".sqlite", ".sqlite3")  # the suffixes of database files
_MAX_EXPERIMENT = 500  # characters, as MLflow has it
_EXPERIMENT_ID = re.compile(r"[a-zA-Z0-9][\w\-]{0,63}")
_ACCEPTED = "sqlite:///FILE.db, http(s)://HOST:PORT, postgresql://…, mysql://…, mssql://… or databricks"


def launch_folder() -> Path:
    """Return the folder from which the command was started, even after Hydra has changed to the directory of the
    run."""
    hydra_config = sys.modules.get("hydra.core.hydra_config")
    if hydra_config is not None and hydra_config.HydraConfig.initialized():
        return Path(hydra_config.HydraConfig.get().runtime.cwd)
    return Path.cwd()


def resolve(uri: str | None, folder: Path) -> str:
    """Return the MLflow URI: the given one, MLFLOW_TRACKING_URI, or `mlflow.db` in `folder`. SQLite paths become
    absolute.

    Raises:
        ConfigError: MLflow does not (or no longer) support this kind of store.
    """
    if not isinstance(uri, str | None):
        raise ConfigError("uri", uri, f"{_ACCEPTED}, or null")
    key = "uri" if uri else "MLFLOW_TRACKING_URI"
    refusal: type[ConfigError] = ConfigError if uri else VariableError
    accepted = f"{_ACCEPTED}, or null" if uri else _ACCEPTED
    given = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, rest = given.partition("://")
    dialect = scheme.partition("+")[0]
    if dialect == "sqlite":
        path = rest.removeprefix("/")
        if not path or path.startswith(":memory:"):
            raise refusal(key, redact(given), accepted, hint="An in-memory database is lost when its process ends.")
        return f"{scheme}:///{folder / path}"
    if dialect == "file" or not (separator or given == "databricks"):
        hint = "MLflow no longer supports its file store. Use sqlite:///mlflow.db."
        if not separator and ":" in given and not given.startswith("file:"):
            hint = "The URI has no ://."
        elif Path(given).suffix in _FILES and dialect != "file":
            hint = f"For this database, use sqlite:///{given}."
        raise refusal(key, redact(given), accepted, hint=hint)
    if dialect not in _SERVERS + _DATABASES and not _has_plugin(scheme):
        raise refusal(
            key, redact(given), accepted, options=[f"{name}://{redact(rest)}" for name in _SERVERS + _DATABASES]
        )
    return _as_connected(given)


def experiment(given: str | float | None, uri: str) -> tuple[str | None, str | None]:
    """Return the name and the ID of the experiment, of which one is None.

    The result is the given name, otherwise MLFLOW_EXPERIMENT_NAME, otherwise the ID MLFLOW_EXPERIMENT_ID, otherwise
    `trainyard`.

    Args:
        given: the name in the config.
        uri: the resolved URI of the store. For a database file, the state of the experiment is checked.

    Raises:
        ConfigError: MLflow does not accept the name or the ID, or the experiment is missing or marked as deleted in a
            database.
    """
    names = () if given is not None else ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
    variable = next(filter(os.environ.get, names), None)
    key, refusal = ("experiment", ConfigError) if variable is None else (variable, VariableError)
    is_id = variable == "MLFLOW_EXPERIMENT_ID"
    chosen = os.environ[variable] if variable is not None else DEFAULT_EXPERIMENT if given is None else given
    if not is_id:
        other = "null for the default" if variable is None else ""
        try:
            chosen = text(key, chosen, at_most=_MAX_EXPERIMENT, other=other)
        except ConfigError as error:
            raise refusal(key, error.given, error.accepted) from None
    found = str(chosen)
    state = _state_in_database(uri, "experiment_id" if is_id else "name", found)
    if is_id and (not _EXPERIMENT_ID.fullmatch(found) or state == "missing"):
        raise refusal(key, found, f"the ID of an experiment in {redact(uri)}")
    if state == "deleted":
        hint = (
            f"The experiment was deleted in {redact(uri)}. Choose another one (tracker.experiment=…), or restore "
            "it in MLflow."
        )
        raise refusal(key, found, "an experiment that is not deleted", hint=hint)
    return (None, found) if is_id else (found, None)


def _state_in_database(uri: str, column: str, value: str) -> str | None:
    """Return the state of an experiment in a database file: active, deleted or missing; None if the file cannot be
    read."""
    file = sqlite_file(uri)
    if file is None or not file.is_file():
        return None
    import sqlite3
    from contextlib import closing

    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=0.1)) as connection:
            query = f"SELECT lifecycle_stage FROM experiments WHERE {column} = ?"
            found = connection.execute(query, (value,)).fetchone()
    except (sqlite3.Error, OverflowError):  # locked, or none of MLflow's: the shipper will say what is wrong
        return None
    return "missing" if found is None else str(found[0])


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a resolved SQLite URI; None for any other."""
    scheme, _, rest = uri.partition(":///")
    return Path(rest.partition("?")[0]) if scheme.partition("+")[0] == "sqlite" else None


def with_password(uri: str) -> str:
    """Return the URI to which to connect; redacted parts are taken from MLFLOW_TRACKING_URI.

    Raises:
        TrainyardError: MLFLOW_TRACKING_URI does not contain this URI.
    """
    if MASK not in uri:
        return uri
    full = _as_connected(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if redact(full) != uri:
        raise TrainyardError(f"The password of {uri} is not saved: set MLFLOW_TRACKING_URI to the complete URI.")
    return full


def _as_connected(uri: str) -> str:
    """Return the URI of a server or database in the form in which it is recorded, with its password."""
    return escaped(uri.rstrip("/") if uri.partition("://")[0] in ("http", "https") else uri)


def _has_plugin(scheme: str) -> bool:
    return scheme in importlib.metadata.entry_points(group="mlflow.tracking_store").names
