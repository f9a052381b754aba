"""PyTorch's optimizers, Lion, SAM and Muon, and rules for individual parameters (`docs/optim.md`)."""

from trainyard.optim.build import build, from_config
from trainyard.optim.for_model import ByModel, for_model
from trainyard.optim.lion import Lion
from trainyard.optim.muon import Muon
from trainyard.optim.paramwise import Paramwise
from trainyard.optim.sam import SAM
from trainyard.optim.several import OptimizerDict, ScheduleDict, build_several, schedules_of

__all__ = [
    "SAM",
    "ByModel",
    "Lion",
    "Muon",
    "OptimizerDict",
    "Paramwise",
    "ScheduleDict",
    "build",
    "build_several",
    "for_model",
    "from_config",
    "schedules_of",
]
