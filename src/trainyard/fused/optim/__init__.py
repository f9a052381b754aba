"""Stacked optimizers: one optimizer updates K members, each with its own hyperparameters."""

from trainyard.fused.optim.optimizer import StackedOptimizer
from trainyard.fused.optim.stack import stack_optimizers

__all__ = ["StackedOptimizer", "stack_optimizers"]
