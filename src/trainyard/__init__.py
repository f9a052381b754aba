"""Train PyTorch models from Hydra configs, one experiment or ten thousand, tracked in MLflow."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `trainyard.load` when it is first accessed, because it needs torch and the package does not."""
    if name == "load":
        return import_module("trainyard.inference").load
    raise AttributeError(f"module 'trainyard' has no attribute {name!r}")
