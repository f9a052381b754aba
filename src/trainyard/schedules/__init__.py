"""Schedules of the optimizer's hyperparameters: PyTorch's schedulers, read as tables (`docs/optim.md`)."""

from trainyard.schedules.floors import CosineAnnealingLR, PolynomialLR
from trainyard.schedules.plateau import Plateau
from trainyard.schedules.schedule import Schedule
from trainyard.schedules.several import Several

__all__ = ["CosineAnnealingLR", "Plateau", "PolynomialLR", "Schedule", "Several"]
