"""Train PyTorch models from Hydra configs, one experiment or ten thousand, tracked in MLflow."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `trainyard.load`, or a module of the package, when it is first accessed: most of them need torch, and the
    package does not."""
    if name == "load":
        return import_module("trainyard.inference").load
    if not name.startswith("_") and find_spec(f"trainyard.{name}") is not None:
        return import_module(f"trainyard.{name}")
    raise AttributeError(f"module 'trainyard' has no attribute {name!r}")
