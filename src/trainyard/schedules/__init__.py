"""Schedules of the optimizer's numbers: torch's own schedulers, read as tables (`docs/optim.md`)."""

from trainyard.schedules.plateau import Plateau
from trainyard.schedules.schedule import Schedule
from trainyard.schedules.several import Several

__all__ = ["Plateau", "Schedule", "Several"]
