"""Interface for placing agents: a queue of jobs on a cluster, or processes on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Pool(ABC):
    """Places agents, each of which provides the slots of a node, or of a part of one.

    A place identifies an agent in the pool, such as the number of a job in a queue. The agent reads it from its
    environment.
    """

    def check(self) -> None:  # noqa: B027 (not every pool has something to check)
        """Check that agents can be placed, before anything starts.

        Raises:
            TrainyardError: no agent can ever be placed.
        """

    @abstractmethod
    def start(self, command: Sequence[str]) -> bool:
        """Set the command that starts an agent on its node, and end the agents of an earlier head.

        Returns:
            Whether these have certainly ended.
        """

    @abstractmethod
    def want(self, count: int) -> None:
        """Set the number of wanted agents: more are placed, and those that have not started may be withdrawn."""

    @abstractmethod
    def gone(self) -> dict[str, str]:
        """Return the places that have ended since the last call, each with the reason, for users.

        Raises:
            TrainyardError: agents can no longer be placed.
        """

    @abstractmethod
    def arrived(self, place: str) -> None:
        """Record that the agent of a place works."""

    def look(self) -> None:  # noqa: B027 (not every pool has to ask for it)
        """Check soon which places have ended, because an agent is silent or gone."""

    @abstractmethod
    def close(self) -> None:
        """End all agents."""
