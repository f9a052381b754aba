"""Port of what places agents: a queue of jobs on a cluster, or processes on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Pool(ABC):
    """Places agents, each of which brings the slots of a node, or of a part of one.

    A place is what the pool knows an agent by: the number of a job in a queue. The agent has it from its environment.
    """

    def check(self) -> None:  # noqa: B027 (not every pool has something to check)
        """Check that agents can be placed, before anything starts.

        Raises:
            TrainyardError: they never can.
        """

    @abstractmethod
    def start(self, command: Sequence[str]) -> bool:
        """Take the command that starts an agent on its node, and end the agents of a head before this one.

        Returns:
            Whether these are certainly gone.
        """

    @abstractmethod
    def want(self, count: int) -> None:
        """Say how many agents there should be: more are placed, and those that have not begun may be taken back."""

    @abstractmethod
    def gone(self) -> dict[str, str]:
        """Return the places that have ended since the last call, each with the reason for people.

        Raises:
            TrainyardError: no agent can be placed any more.
        """

    @abstractmethod
    def arrived(self, place: str) -> None:
        """Take note that the agent of a place works."""

    def look(self) -> None:  # noqa: B027 (not every pool has to ask for it)
        """Look soon which places have ended: an agent is silent, or is gone."""

    @abstractmethod
    def close(self) -> None:
        """End all agents."""
