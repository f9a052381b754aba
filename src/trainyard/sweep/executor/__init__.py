"""Executors, which run the tasks of a plan. They do not import torch; workers do."""

from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.slots import find_slots

__all__ = ["Executor", "LocalExecutor", "find_slots"]
