"""Learning-rate schedules: torch's own schedulers, read as tables. See `docs/optim.md`."""

from trainyard.schedules.plateau import Plateau
from trainyard.schedules.schedule import Schedule

__all__ = ["Plateau", "Schedule"]
