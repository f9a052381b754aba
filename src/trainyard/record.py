"""The former place of `trainyard.run.record.load_model`: journals name it as the loader of their models."""

from trainyard.run.record import load_model

__all__ = ["load_model"]
