"""Optimisers: torch's own, and Lion. See `docs/optim.md`."""

from trainyard.optim.build import build
from trainyard.optim.lion import Lion

__all__ = ["Lion", "build"]
