"""Early start of the agent: it imports torch while Hydra composes the sweep that will use it."""

from __future__ import annotations

import atexit
from collections.abc import Sequence

from trainyard.sweep.executor.agent import Agent

PATIENCE = 60.0
"""Number of seconds after which an unused agent ends itself."""
_waiting: list[Agent] = []  # at most one


def start_early(preload: Sequence[str], threads: int) -> None:
    """Start the agent that a later `take` with the same arguments will return; without one, it ends with the process,
    or after `PATIENCE`.

    Args:
        preload, threads: as for `Agent`.
    """
    if not _waiting:
        _waiting.append(Agent(preload, threads, PATIENCE))
        atexit.register(end_early)


def take(preload: Sequence[str], threads: int) -> Agent:
    """Return the agent that was started early, or a new one if it differs in an argument or in the settings of this
    process.

    Args:
        preload, threads: as for `Agent`.
    """
    if _waiting:
        agent = _waiting.pop()
        agent.keep()
        if agent.is_like(preload, threads):
            return agent
        agent.close()
    return Agent(preload, threads)


def end_early() -> None:
    """End the agent that was started early, if no sweep uses it."""
    while _waiting:
        _waiting.pop().close()
