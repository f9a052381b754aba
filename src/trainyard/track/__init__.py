"""Tracking: training appends to a journal, and a separate process sends the journal to MLflow (docs/tracking.md)."""

from trainyard.track.journal import Journal, Record, Status, read
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import RunShipment, Shipment
from trainyard.track.tracker import MLflowTracker, NoTracker, Tracker, as_tracker

__all__ = [
    "Journal",
    "MLflowTracker",
    "NoTracker",
    "Record",
    "RunInfo",
    "RunShipment",
    "Shipment",
    "Status",
    "Tracker",
    "as_tracker",
    "read",
]
