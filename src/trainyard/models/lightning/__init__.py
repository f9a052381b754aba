"""LightningModules as models (docs/models.md)."""

from trainyard.models.lightning.model import Lightning
from trainyard.models.lightning.recorder import Evaluated

__all__ = ["Evaluated", "Lightning"]
