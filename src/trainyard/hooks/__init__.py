"""Hooks: code called at named stages of a run."""

from trainyard.hooks.checkpoint import Checkpoint
from trainyard.hooks.early_stop import EarlyStopping
from trainyard.hooks.ema import EMA
from trainyard.hooks.hook import Hook
from trainyard.hooks.iter_timer import IterTimer
from trainyard.hooks.logger import Logger
from trainyard.hooks.nan_guard import NaNGuard
from trainyard.hooks.param_schedule import ParamSchedule
from trainyard.hooks.progress import Progress
from trainyard.hooks.runtime_info import RuntimeInfo

__all__ = [
    "EMA",
    "Checkpoint",
    "EarlyStopping",
    "Hook",
    "IterTimer",
    "Logger",
    "NaNGuard",
    "ParamSchedule",
    "Progress",
    "RuntimeInfo",
]
