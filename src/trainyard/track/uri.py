"""Tracking URIs: the MLflow URI and experiment in effect, and URIs as they may be written to disk."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

from trainyard.errors import ConfigError, TrainyardError
from trainyard.redaction import MASK, escaped, redact

DEFAULT_EXPERIMENT = "trainyard"
_SERVERS = ("http", "https", "databricks")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_ACCEPTED = "sqlite:///FILE.db, http(s)://HOST:PORT, postgresql://…, mysql://…, mssql://… or databricks"


def launch_folder() -> Path:
    """Return the folder from which the command was started, also after Hydra has changed into the run's own."""
    hydra_config = sys.modules.get("hydra.core.hydra_config")
    if hydra_config is not None and hydra_config.HydraConfig.initialized():
        return Path(hydra_config.HydraConfig.get().runtime.cwd)
    return Path.cwd()


def resolve(uri: str | None, folder: Path) -> str:
    """Return the MLflow URI: as given, or MLFLOW_TRACKING_URI, or `mlflow.db` in `folder`, with SQLite paths absolute.

    Raises:
        ConfigError: a kind of store that MLflow does not have (any more).
    """
    key = "uri" if uri else "MLFLOW_TRACKING_URI"
    given = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, rest = given.partition("://")
    dialect = scheme.partition("+")[0]
    if dialect == "sqlite":
        path = rest.removeprefix("/")
        if not path or path.startswith(":memory:"):
            raise ConfigError(key, redact(given), _ACCEPTED, hint="A database in memory would end with its process.")
        return f"{scheme}:///{folder / path}"
    if dialect == "file" or not (separator or given == "databricks"):
        raise ConfigError(
            key,
            redact(given),
            _ACCEPTED,
            hint="MLflow has given up its file store; sqlite:///mlflow.db takes its place.",
        )
    if dialect not in _SERVERS + _DATABASES and not _has_plugin(scheme):
        raise ConfigError(
            key, redact(given), _ACCEPTED, options=[f"{name}://{redact(rest)}" for name in _SERVERS + _DATABASES]
        )
    return escaped(given.rstrip("/") if dialect in ("http", "https") else given)


def experiment_name(experiment: str | None) -> str:
    """Return the name as given, else MLFLOW_EXPERIMENT_NAME, else `trainyard`."""
    return experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a resolved SQLite URI; None for any other."""
    scheme, _, rest = uri.partition(":///")
    return Path(rest.partition("?")[0]) if scheme.partition("+")[0] == "sqlite" else None


def with_password(uri: str) -> str:
    """Return the URI to connect to; what was redacted is taken from MLFLOW_TRACKING_URI.

    Raises:
        TrainyardError: that variable does not hold this URI.
    """
    if MASK not in uri:
        return uri
    full = escaped(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if redact(full) != uri:
        raise TrainyardError(f"The password of {uri} is not written down: set MLFLOW_TRACKING_URI to the whole URI.")
    return full


def _has_plugin(scheme: str) -> bool:
    return scheme in importlib.metadata.entry_points(group="mlflow.tracking_store").names
