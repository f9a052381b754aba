"""Executors, which provide slots and run tasks on them. They do not import torch; workers do."""

from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.slots import find_slots

__all__ = ["Executor", "LocalExecutor", "Policy", "find_slots"]
