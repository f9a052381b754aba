"""Courier of a task: a thread that carries its files between here and a storage while the task runs."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from trainyard.sweep.executor.shipping.storage import in_words

EVERY = 2.0
"""Minimum seconds between two checks, which take at most a tenth of the time."""
_SHORTEST, _LONGEST = 0.5, 10.0  # seconds between two tries while the storage fails
Action = Callable[[], object]


class Arrivals:
    """Messages of couriers to the thread of their owner, which a descriptor wakes."""

    def __init__(self) -> None:
        self._actions: deque[Action] = deque()
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, action: Action) -> None:
        """Let the owner call a function."""
        self._actions.append(action)
        with suppress(OSError):  # closed: its owner has ended
            os.eventfd_write(self._signal, 1)

    def handle(self) -> None:
        """Call the pending functions."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._signal)
        while self._actions:
            self._actions.popleft()()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._signal

    def clear(self) -> None:
        """Drop the pending functions."""
        self._actions.clear()

    def close(self) -> None:
        """Stop calling functions."""
        self.clear()
        os.close(self._signal)


class Courier:
    """Thread that carries the files of a task.

    A storage that fails is retried until it works. `end` waits for pending transfers; `abandon` does not.

    Args:
        begin: transfers the files that must be available before the task starts.
        carry: transfers changed files.
        arrivals: the queue on which its owner waits.
        tell: called with messages about failures.
        before: earlier couriers of the same files.
    """

    def __init__(
        self,
        begin: Action,
        carry: Action,
        arrivals: Arrivals,
        tell: Callable[[str], object],
        before: Sequence[Courier] = (),
    ) -> None:
        self._carry = carry
        self._arrivals = arrivals
        self._tell = tell
        self._before = before
        self._asked: queue.SimpleQueue[tuple[Action, Action | None]] = queue.SimpleQueue()
        self._abandoned = threading.Event()
        self._ending = False
        self._failing = False
        self._pause = EVERY
        self._asked.put((begin, None))
        self._thread = threading.Thread(target=self._work, name="trainyard storage", daemon=True)
        self._thread.start()

    def ask(self, then: Action) -> None:
        """Transfer the current files, then let the owner call a function; requests are handled in order."""
        self._asked.put((self._carry, then))

    def tell_begun(self, then: Action) -> None:
        """Call a function in the owner when the files that the task needs are available."""
        self._asked.put((lambda: None, then))

    def end(self, then: Action) -> None:
        """Transfer the current files for the last time, then let the owner call a function."""
        self._ending = True
        self._asked.put((self._carry, then))

    def abandon(self) -> None:
        """Stop transferring; return immediately."""
        self._abandoned.set()
        self._asked.put((lambda: None, None))

    def wait(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def _work(self) -> None:
        for courier in self._before:
            courier.wait()
        self._before = ()
        while not self._abandoned.is_set():
            try:
                carry, then = self._asked.get(timeout=self._pause)
            except queue.Empty:
                self._try(self._carry)
                continue
            while not self._try(carry):
                if self._abandoned.wait(self._pause):
                    return
            if then is not None and not self._abandoned.is_set():
                self._arrivals.put(then)
            if self._ending and self._asked.empty():
                return

    def _try(self, carry: Action) -> bool:
        begun = time.monotonic()
        try:
            carry()
        except Exception as error:  # a storage's own, of many kinds
            if not self._failing:
                self._failing, self._pause = True, _SHORTEST / 2
                self._tell(
                    f"A transfer between this machine and the storage failed: {in_words(error)}. It will be repeated."
                )
            self._pause = min(_LONGEST, 2 * self._pause)
            return False
        if self._failing:
            self._failing = False
            self._tell("The transfer has succeeded.")
        self._pause = max(EVERY, 10 * (time.monotonic() - begun))
        return True
