"""Several members as one program: their models, optimisers, schedules and data, stacked."""

from trainyard.fused.errors import Unfusable

__all__ = ["Unfusable"]
