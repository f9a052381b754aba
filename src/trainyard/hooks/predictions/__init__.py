"""Hooks for predictions: prediction files and prediction figures."""

from trainyard.hooks.predictions.detections import DetectionLog
from trainyard.hooks.predictions.dump import PredictionDump
from trainyard.hooks.predictions.log import PredictionLog

__all__ = ["DetectionLog", "PredictionDump", "PredictionLog"]
