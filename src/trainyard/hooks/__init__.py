"""Hooks: code called at named stages of a run."""

from trainyard.hooks.checkpoint import Checkpoint
from trainyard.hooks.early_stop import EarlyStopping
from trainyard.hooks.ema import EMA
from trainyard.hooks.empty_cache import EmptyCache
from trainyard.hooks.iter_timer import IterTimer
from trainyard.hooks.logger import Logger
from trainyard.hooks.lr_finder import LRFinder
from trainyard.hooks.model_summary import ModelSummary
from trainyard.hooks.nan_guard import NaNGuard
from trainyard.hooks.norms import Norms
from trainyard.hooks.param_schedule import ParamSchedule
from trainyard.hooks.precise_bn import PreciseBN
from trainyard.hooks.predictions.detections import DetectionLog
from trainyard.hooks.predictions.dump import PredictionDump
from trainyard.hooks.predictions.log import PredictionLog
from trainyard.hooks.profiler import Profiler
from trainyard.hooks.progress import Progress
from trainyard.hooks.runtime_info import RuntimeInfo
from trainyard.hooks.system_metrics import SystemMetrics
from trainyard.hooks.test_time_augmentation import TestTimeAugmentation
from trainyard.hooks.train_metrics import TrainMetrics
from trainyard.hooks.unfreeze import Unfreeze
from trainyard.runner.hook import Hook

__all__ = [
    "EMA",
    "Checkpoint",
    "DetectionLog",
    "EarlyStopping",
    "EmptyCache",
    "Hook",
    "IterTimer",
    "LRFinder",
    "Logger",
    "ModelSummary",
    "NaNGuard",
    "Norms",
    "ParamSchedule",
    "PreciseBN",
    "PredictionDump",
    "PredictionLog",
    "Profiler",
    "Progress",
    "RuntimeInfo",
    "SystemMetrics",
    "TestTimeAugmentation",
    "TrainMetrics",
    "Unfreeze",
]
