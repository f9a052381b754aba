"""Stacked optimizers: K members whose hyperparameters differ, stepped at once."""

from trainyard.fused.optim.optimizer import StackedOptimizer
from trainyard.fused.optim.stack import stack_optimizers

__all__ = ["StackedOptimizer", "stack_optimizers"]
