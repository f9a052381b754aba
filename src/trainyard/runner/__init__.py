"""The Runner, its loops, its members and their checkpoints."""

from trainyard.runner import checkpoint
from trainyard.runner.default_hooks import default_hooks
from trainyard.runner.env import Env
from trainyard.runner.eval_loops import TestLoop, ValLoop
from trainyard.runner.loops import EpochBasedTrainLoop, IterBasedTrainLoop, TrainLoop
from trainyard.runner.member import Best, Member, Objective, read
from trainyard.runner.runner import Runner
from trainyard.runner.simulation import SimulationTrainLoop
from trainyard.runner.state import copy_tensors

__all__ = [
    "Best",
    "Env",
    "EpochBasedTrainLoop",
    "IterBasedTrainLoop",
    "Member",
    "Objective",
    "Runner",
    "SimulationTrainLoop",
    "TestLoop",
    "TrainLoop",
    "ValLoop",
    "checkpoint",
    "copy_tensors",
    "default_hooks",
    "read",
]
