"""Hooks for predictions: written to a file, and shown as figures."""

from trainyard.hooks.predictions.dump import PredictionDump
from trainyard.hooks.predictions.log import PredictionLog

__all__ = ["PredictionDump", "PredictionLog"]
