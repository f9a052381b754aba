"""The option `--uri`: an MLflow store."""

from __future__ import annotations

from pathlib import Path

from trainyard.errors import ConfigError, TrainyardError
from trainyard.track.uri import resolve


def store(uri: str | None) -> str:
    """Return the URI of a store: the given one, or the one of the environment.

    Raises:
        TrainyardError: MLflow has no store of that kind.
    """
    try:
        return resolve(uri, Path.cwd())
    except ConfigError as error:
        raise TrainyardError(f"--{error}" if uri else str(error)) from error
