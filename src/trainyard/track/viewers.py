"""Viewers in addition to MLflow for which the metrics of a run are copied."""

from __future__ import annotations

from importlib.util import find_spec

from trainyard.checks import boolean
from trainyard.errors import ConfigError


def copies(tensorboard: object, wandb: object) -> list[str]:
    """Return the copies that the shipper creates, in the form of a run's record.

    Raises:
        ConfigError: an invalid setting, or a viewer that is not installed.
    """
    found = []
    if boolean("tensorboard", tensorboard):
        _check("tensorboard", tensorboard, "false")
        found.append("tensorboard")
    if wandb is not None:
        if wandb != "offline":
            raise ConfigError("wandb", wandb, "offline, or null", options=("offline",))
        _check("wandb", wandb, "null")
        found.append(f"wandb={wandb}")
    return found


def _check(name: str, given: object, off: str) -> None:
    if find_spec(name) is None:
        hint = f"To install the package: pip install 'trainyard[{name}]'."
        raise ConfigError(name, given, f"{off}, because the package {name} is not installed", hint=hint)
