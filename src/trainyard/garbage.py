"""Garbage collection of a command: rare until its work begins, because what imports create is not garbage."""

from __future__ import annotations

import gc

_usual: list[tuple[int, int, int]] = []  # the thresholds of before, while collections are rare


def collect_rarely() -> None:
    """Collect garbage rarely until `collect_as_usual`: importing torch and Hydra then takes a tenth less time."""
    if not _usual:
        _usual.append(gc.get_threshold())
        gc.set_threshold(100_000, 50, 1000)


def collect_as_usual() -> None:
    """End `collect_rarely`, if it was called; the objects that exist now are exempt from collections."""
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())
