"""What runs the tasks of a plan. None of it imports torch: it is the workers that need it."""

from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.slots import find_slots

__all__ = ["Executor", "LocalExecutor", "find_slots"]
