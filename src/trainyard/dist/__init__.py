"""The former name of `trainyard.distributed`, for configs that use it."""

from trainyard.distributed import Strategy, as_strategy

__all__ = ["Strategy", "as_strategy"]
