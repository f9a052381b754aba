"""Distributed training strategies (docs/distributed.md)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from trainyard.distributed.strategy import Strategy
from trainyard.errors import ConfigError

__all__ = ["Strategy", "as_strategy"]

_KINDS = {"single": "strategy.Strategy", "ddp": "ddp.DDP", "fsdp": "fsdp.FSDP"}


def as_strategy(given: Any) -> Strategy:
    """Return a strategy unchanged, or the strategy with a name (`single`, `ddp`, `fsdp`); None is one device.

    Raises:
        ConfigError: the value is not one of these.
    """
    if isinstance(given, Strategy):
        return given
    if given is not None and not (isinstance(given, str) and given in _KINDS):
        raise ConfigError("strategy", given, f"one of {', '.join(_KINDS)}, null, or a Strategy", options=_KINDS)
    module, _, kind = _KINDS[given or "single"].partition(".")
    strategy: Strategy = getattr(
        import_module(f"trainyard.distributed.{module}"), kind
    )()  # importing FSDP takes a second
    return strategy
