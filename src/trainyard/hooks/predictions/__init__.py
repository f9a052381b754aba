"""Hooks for predictions: prediction files and prediction figures."""

from trainyard.hooks.predictions.dump import PredictionDump
from trainyard.hooks.predictions.log import PredictionLog

__all__ = ["PredictionDump", "PredictionLog"]
