"""Tasks on several agents, each of which runs a part: the parts start, end and are lost together."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainyard.sweep.executor.base import Finished
from trainyard.sweep.executor.meeting import FOLDER, MEETINGS
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.remotes import Remote
from trainyard.sweep.executor.task import Task

Part = tuple[str, int]
"""The name of a part's agent, and its worker's number."""
Launch = tuple[int, Task, Sequence[int], Policy]
"""The arguments of `Executor.launch`."""
_CONSEQUENCES = ("gloo", "Dist", "NCCL")  # in the errors of ranks that have lost another one


@dataclass
class _Spread:
    """Task on several agents.

    Attributes:
        num: the task's own number.
        parts: the parts, in the order of the nodes.
        meeting: the file with the address of the first one.
        left: the parts that have not ended.
        ended: how the others ended, in this order.
        over: whether it has lost an agent, so that nothing more is reported for it.
    """

    num: int
    parts: list[Part]
    meeting: Path
    left: set[Part]
    ended: dict[Part, Finished] = field(default_factory=dict)
    over: bool = False

    def outcome(self) -> Finished:
        """Return how a task ended whose parts have all ended.

        This is the report of the first node, or of the first part that failed. When a rank fails, the others lose their
        connections to it, so their reports are consequences.
        """
        wrong = [each for each in self.ended.values() if each.state != "done"]
        if not wrong:
            return self.ended[self.parts[0]]
        return min(wrong, key=lambda each: any(word in (each.error or "") for word in _CONSEQUENCES))


class SpreadTasks:
    """Tasks on several agents that run, by their numbers.

    When a part is lost, the others are killed, and the task continues elsewhere when they have ended. Until then,
    launches on their slots, and of the task itself, are held back.

    Args:
        directory: the sweep's directory.
        send_signal: sends a signal to parts.
        end: asks all parts of the task of a number to end.
    """

    def __init__(
        self, directory: Path, send_signal: Callable[[list[Part], int], object], end: Callable[[int], object]
    ) -> None:
        self._directory = directory
        self._send_signal = send_signal
        self._end = end
        self._spread: dict[int, _Spread] = {}
        self._held: list[Launch] = []

    def __contains__(self, number: int) -> bool:
        return number in self._spread

    def begin(self, number: int, num: int, parts: Sequence[Part], fence: int) -> Path:
        """Record a launched task, and return the file through which its parts connect.

        Args:
            number: the number of the launch.
            num: the task's own.
            parts: the parts, in the order of the nodes.
            fence: the head's.
        """
        meeting = self._directory.absolute() / FOLDER / MEETINGS / f"{fence}-{number}"
        self._spread[number] = _Spread(num, list(parts), meeting, set(parts))
        return meeting

    def tells_start(self, number: int, part: Part) -> bool:
        """Return whether the start of a worker counts as the start of its task."""
        spread = self._spread.get(number)
        return spread is None or (part == spread.parts[0] and not spread.over)

    def lose(self, part: Part) -> None:
        """Record that a part is lost, if it is one, and kill the other parts of its task."""
        for number, spread in list(self._spread.items()):
            if part in spread.left:
                spread.over = True
                spread.left.discard(part)
                self._send_signal(sorted(spread.left), signal.SIGKILL)
                if not spread.left:
                    self._drop(number)

    def lose_agent(self, name: str) -> None:
        """Record that an agent is gone: tasks with a part on it report nothing more."""
        for spread in self._spread.values():
            spread.over |= any(agent == name for agent, _ in spread.parts)

    def part_ended(self, part: Part, finished: Finished, leaving: bool) -> Finished | None:
        """Record the end of a part, and return how its task ended with the last one.

        Parts cannot continue without the others.

        Args:
            part: the part.
            finished: how it ended.
            leaving: whether its agent leaves: the slots are lost, too, which is reported separately.
        """
        number, spread = finished.number, self._spread[finished.number]
        spread.left.discard(part)
        spread.ended[part] = finished
        spread.over |= leaving
        if spread.left:
            if finished.state != "done":
                self._end(number)
            return None
        self._drop(number)
        return None if spread.over else spread.outcome()

    def _drop(self, number: int) -> None:
        with suppress(OSError):
            self._spread.pop(number).meeting.unlink()

    # -- what waits ----------------------------------------------------------------------------------------------------

    def hold(self, launch: Launch, agents: Iterable[Remote]) -> bool:
        """Hold a launch back while a part of a lost task still runs on its slots, or belongs to the same task.

        Args:
            launch: the launch.
            agents: all agents.

        Returns:
            Whether it is held back.
        """
        broken = {each.num for each in self._spread.values() if each.over}
        _, task, slots, _ = launch
        held = bool(broken) and (task.num in broken or any(not agent.in_use.isdisjoint(slots) for agent in agents))
        if held:
            self._held.append(launch)
        return held

    def release(self) -> list[Launch]:
        """Return the tasks that were held back, so that they are launched again."""
        held, self._held = self._held, []
        return held

    def take_back(self, numbers: Set[int]) -> list[int]:
        """Drop those of some launches that are held back, and return their numbers."""
        taken = [number for number, *_ in self._held if number in numbers]
        self._held = [each for each in self._held if each[0] not in numbers]
        return taken

    def clear(self) -> None:
        """Forget everything."""
        self._spread.clear()
        self._held.clear()
