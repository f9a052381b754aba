"""Executor for several machines: agents that a pool places provide slots until they leave."""

from __future__ import annotations

import itertools
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

from trainyard.errors import TrainyardError
from trainyard.sweep.executor.agent import ExecutorError, in_words, not_preloaded
from trainyard.sweep.executor.base import Executor, ExecutorEvent, Finished
from trainyard.sweep.executor.lease import HeadLease
from trainyard.sweep.executor.meeting import forget_agent, open_head
from trainyard.sweep.executor.outbox import Outbox
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.remote_agent import CODE
from trainyard.sweep.executor.remotes import (
    ClusterSettings,
    Remote,
    RemoteSlots,
    process_message,
    refusal,
    task_message,
    welcome_message,
)
from trainyard.sweep.executor.shipping.files import HeadFiles, outlive, roots_of
from trainyard.sweep.executor.slots import Slot, capacity
from trainyard.sweep.executor.spread import SpreadTasks
from trainyard.sweep.executor.task import Task
from trainyard.sweep.executor.transport import Received, Transport
from trainyard.sweep.executor.transport.base import BEAT
from trainyard.sweep.executor.worker import one_line
from trainyard.sweep.executor.workers import Workers

LOSSES = 5
"""Number of agents that a task may lose before it counts as the cause."""
_MOVED = ("done", "failed", "paused", "timeout")
"""Ways in which a task whose agent leaves can end; otherwise, it continues elsewhere, because its slots are lost."""
_LOOK = 0.5  # seconds between two looks at the pool and at silent agents
_SILENCE = 3 * BEAT  # seconds of silence after which the pool is asked what has become of an agent
_MARGIN = 5.0  # seconds that an agent may take for noticing that its head is lost


class ClusterExecutor(Executor):
    """Runs tasks on the slots of agents, which come and go while it runs.

    A task whose agent is lost, or leaves, ends without a separate event: the slots are lost, and the scheduler restarts
    the units that ran on them.

    Args:
        slots: the maximum set of slots of the pool, which are all alike.
        pool: places the agents.
        directory: the sweep's directory, which all machines see.
        preload: modules to import before workers are forked.
        grace: seconds that workers have to end when their head is lost.
        settings: how agents find and lose their head.
        files: the handling of the files of tasks; None if all machines see the directory.
        tell: called with messages about agents.

    Raises:
        ConfigError: (from `wait`) this machine has no such address.
        TrainyardError: from `start` and `wait`, no agent can be placed; from `wait`, another process runs this sweep.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        pool: Pool,
        directory: Path,
        *,
        per_agent: int = 1,
        preload: Sequence[str] = ("torch",),
        grace: float = 30.0,
        settings: ClusterSettings = ClusterSettings(),  # noqa: B008 - it is frozen
        files: HeadFiles | None = None,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.slots = tuple(slots)
        self.preload = tuple(preload)
        self._pool = pool
        self._directory = directory
        self._per_agent = per_agent
        self._grace = grace
        self._settings = settings
        self._files = files or HeadFiles(directory)
        self._tell = tell
        self._started = False
        self._fence = 0
        self._transport: Transport | None = None
        self._agents: dict[str, Remote] = {}
        self._remote_slots = RemoteSlots()
        self._numbers = itertools.count()
        self._outbox = Outbox(self._files)
        self._process: dict[str, Any] = {}  # what tasks inherit from this one
        self._workers = Workers(self._outbox.send_signal)
        self._losses: Counter[int] = Counter()
        self._spread = SpreadTasks(
            directory, self._outbox.send_signal, lambda number: self._workers.end([number], grace)
        )
        self._events: list[ExecutorEvent] = []
        self._refused: set[str] = set()
        self._silent: set[str] = set()
        self._demand = 0
        self._next_look = 0.0

    @property
    def started(self) -> bool:
        return self._started

    @property
    def room(self) -> int:
        agents = len(self.slots) // self._per_agent if self.shares_disk else 1
        return agents * capacity(self.slots[: self._per_agent])

    @property
    def here(self) -> bool:
        return False

    @property
    def shares_disk(self) -> bool:
        return self._files.shared

    def start(self) -> None:
        """Check that agents can be placed. Files are created by the first `wait`, so that an invalid config leaves
        none."""
        if not self._started:
            self._pool.check()
            assert self._files.version  # the code is that of now, whatever becomes of it
            self._started = True

    def _begin(self) -> None:
        self._lease = HeadLease(self._directory)
        self._lease.take()
        try:
            self._open()
        except BaseException:
            self._lease.release()
            raise

    def _open(self) -> None:
        self._files.prepare()
        before = self._files.left_agents()
        own = self._settings
        self._transport, address = open_head(self._directory, own.transport, own.address, own.address_key)
        self._outbox.open(self._transport)
        self._process = process_message()
        self._fence = address.fence
        self._lease.fenced(self._fence)
        self._files.open(self._fence)
        if self._pool.start([sys.executable, "-c", CODE, str(self._directory), *map(str, sys.path)]):
            for name in before:
                self._files.forget_agent(name)
        elif before:
            self._tell(f"Waiting for {len(before)} agent{'s' * (len(before) > 1)} of the previous head to end.")
            outlive(self._files, before, self._settings.patience)

    @property
    def ready(self) -> tuple[Slot, ...]:
        return self._remote_slots.ready

    def expect(self, slots: int) -> None:
        self._demand = min(slots, len(self.slots))

    def launch(self, number: int, task: Task, slots: Sequence[int], policy: Policy) -> None:
        of = self._remote_slots.of
        found = [of.get(index) for index in slots]
        agents = list({agent.name: agent for agent in found if agent is not None}.values())
        if None in found or any(agent.leaving for agent in agents):
            return  # these slots are lost, which is reported separately
        if len(agents) > 1 and not self.shares_disk:
            told = f"the job needs {len(slots)} slots, which are on several machines without a shared disk"
            self._events.append(Finished(number, "failed", error=told, began=False))
            return
        if self._spread.hold((number, task, slots, policy), self._agents.values()):
            return
        try:
            call = task.call(self._files.folders)
            for agent in agents:
                self._outbox.send_common(agent, task)
        except Exception as error:
            told = f"the task cannot be pickled: {one_line(error)}"
            self._events.append(Finished(number, "failed", error=told, traceback=traceback.format_exc(), began=False))
            return
        own = [[index for index in slots if of[index] is agent] for agent in agents]
        parts = [(agent.name, next(self._numbers)) for agent in agents]
        meeting = self._spread.begin(number, task.num, parts, self._fence) if len(agents) > 1 else None
        roots = roots_of(task, self._directory)
        for index, (agent, key, mine) in enumerate(zip(agents, parts, own, strict=True)):
            self._workers.begin(key, number, policy)
            agent.busy[key[1]], agent.tasks[key[1]] = tuple(mine), task.num
            agent.idle_since = None
            nodes = {"index": index, "devices": [len(each) for each in own], "meeting": str(meeting)}
            numbers = [agent.slots[each] for each in mine]
            given = task_message(task, numbers, roots, index, nodes if meeting else None)
            self._outbox.send_task(key, self._process | given, call)

    def end(self, numbers: Iterable[int], grace: float | None) -> None:
        wanted = set(numbers)
        self._workers.end(wanted, grace)
        for number in self._spread.take_back(wanted):
            self._events.append(Finished(number, "interrupted", error="the job had not started", began=False))

    def answer(self, number: int, content: bytes) -> None:
        found = self._workers.named(number)
        if isinstance(found, tuple):
            name, worker = found
            self._outbox.send(name, ["answer", worker], content)

    def wait(self, timeout: float) -> list[ExecutorEvent]:
        if self._transport is None:
            self._begin()
            assert self._transport is not None
        self._workers.end_late()
        self._look()
        now = time.monotonic()
        wait = 0.0 if self._events else self._workers.next_due(min(now + timeout, self._next_look)) - now
        connection.wait([self._transport.fileno(), self._files.arrivals.fileno()], max(0.0, wait))
        self._files.arrivals.handle()
        for received in self._transport.receive(0):
            self._heard(received)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._started = False
        if self._transport is None:
            self._pool.close()
            return
        whole = not any(agent.tasks for agent in self._agents.values())
        for name in self._agents:
            self._outbox.send(name, ["close"])
            self._transport.forget(name)
        self._transport.close(flush=2.0)
        self._pool.close()
        self._files.put_away(whole)
        self._lease.release()
        self._transport = None
        self._agents.clear()
        self._outbox.clear()
        self._remote_slots.clear()
        self._workers.clear()
        self._events.clear()
        self._spread.clear()

    # -- agents come and go --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Check for agents that are gone, and for agents that are needed or no longer needed."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK
        assert self._transport is not None
        if self._lease.lost:
            raise TrainyardError(f"{self._directory}: another process has taken over this sweep.")
        silent = {it.name for it in self._agents.values() if self._transport.silence(it.name) > _SILENCE}
        if silent - self._silent:
            self._pool.look()
        self._silent = silent
        limit = self._settings.patience + self._grace + _MARGIN
        for agent in [it for it in self._agents.values() if self._transport.silence(it.name) > limit]:
            self._lose(agent, "the agent does not respond")
        for place, why in self._pool.gone().items():
            for agent in [it for it in self._agents.values() if it.place == place]:
                self._lose(agent, why)
        for reason in getattr(self._transport, "refused", []):
            if reason not in self._refused:
                self._refused.add(reason)
                self._tell(f"A connection was refused: {reason}.")
        working = [it for it in self._agents.values() if not it.leaving]
        needed = math.ceil(self._demand / self._per_agent)
        for agent in [it for it in working if it.idle() > self._settings.idle][: max(0, len(working) - needed)]:
            self._dismiss(agent)
        self._pool.want(needed)

    def _dismiss(self, agent: Remote) -> None:
        agent.leaving = "there are no more jobs"
        self._outbox.send(agent.name, ["close"])
        self._remove(agent)

    def _lose(self, agent: Remote, why: str) -> None:
        """Record that an agent is gone and has not reported how its workers ended."""
        if agent.coming_home:
            agent.afterwards = partial(self._lose, agent, why)
            return
        self._tell(f"The agent on {agent.node} is lost: {why}.")
        for worker, num in agent.tasks.items():
            self._losses[num] += 1
            if self._losses[num] > LOSSES:
                how = f"{self._losses[num]} agents were lost while the job was running"
                self._events.append(self._workers.ended((agent.name, worker), how))
            self._spread.lose((agent.name, worker))
        self._remove(agent)

    def _remove(self, agent: Remote) -> None:
        if agent.coming_home:
            agent.afterwards = partial(self._remove, agent)
            return
        assert self._transport is not None
        for worker in agent.tasks:
            self._workers.forget((agent.name, worker))
            self._files.lose((agent.name, worker))
        self._spread.lose_agent(agent.name)
        forget_agent(self._directory, agent.name)
        self._tell_of(self._remote_slots.lose(agent, tuple(agent.slots)))
        del self._agents[agent.name]
        self._transport.forget(agent.name)
        self._pool.look()

    # -- messages ------------------------------------------------------------------------------------------------------

    def _heard(self, received: Received) -> None:
        agent = self._agents.get(received.peer)
        match received.message:
            case ["hello", hello]:
                self._greet(received.peer, hello)
            case _ if agent is None:
                pass  # one that is lost, and does not know it yet
            case ["ready", slots]:
                self._gain(agent, slots)
            case ["leaving", why]:
                self._tell(f"The agent on {agent.node} leaves: {why}.")
                agent.leaving = why
                free = [index for index in agent.slots if index not in agent.in_use]
                self._tell_of(self._remote_slots.lose(agent, free))
            case ["gone", _]:
                self._remove(agent)
            case ["failed", "torch", error]:
                raise ExecutorError(f"{agent.node}: {error}")
            case ["failed", module, error]:
                raise not_preloaded(module, error, agent.node)
            case [kind, worker, *rest]:
                if (agent.name, worker) in self._workers:
                    self._happened(agent, kind, worker, rest, received.payload)

    def _greet(self, name: str, hello: Mapping[str, Any]) -> None:
        why = refusal(hello, self._fence, self._files.version)
        if why:
            if why not in self._refused:
                self._refused.add(why)
                self._tell(f"An agent on {hello['node']} was refused: {why}.")
            assert self._transport is not None
            self._outbox.send(name, ["refused", f"{why}."])
            self._transport.forget(name)
            return
        for agent in [it for it in self._agents.values() if it.place == hello["place"]]:
            self._lose(agent, "the agent was restarted")
        self._agents[name] = Remote(name, hello["place"], hello["node"])
        self._outbox.send(name, ["welcome", welcome_message(self.preload, self._settings, self._grace)])

    def _gain(self, agent: Remote, slots: Sequence[tuple[str, int]]) -> None:
        gained = self._remote_slots.gain(agent, slots)
        agent.idle_since = time.monotonic()
        self._pool.arrived(agent.place)
        self._events.append(gained)

    def _happened(self, agent: Remote, kind: str, worker: int, rest: Sequence[Any], report: bytes) -> None:
        name = agent.name, worker
        if kind == "forked":
            launched = self._workers.forked(name, rest[0])
            if self._spread.tells_start(launched.number, name):
                self._events.append(launched)
        elif kind == "woken":
            self._files.ask(name, lambda: self._tell_of(self._workers.woken(name, rest[0], rest[1])))
        elif kind == "said":
            self._files.ask(name, lambda: self._tell_of(self._workers.said(name, rest[0])))
        else:
            agent.coming_home.add(worker)
            self._files.end(name, lambda: self._ended(agent, kind, worker, rest, report))

    def _tell_of(self, event: ExecutorEvent | None) -> None:
        if event is not None:
            self._events.append(event)

    def _ended(self, agent: Remote, kind: str, worker: int, rest: Sequence[Any], report: bytes) -> None:
        agent.coming_home.discard(worker)
        slots = agent.busy.pop(worker)
        del agent.tasks[worker]
        if kind == "refused":
            finished = self._workers.ended((agent.name, worker), f"no process could be started: {rest[0]}")
        else:
            status, peak, killed = rest
            how = f"its process {in_words(status)} before it returned a result"
            finished = self._workers.ended((agent.name, worker), how, report, status, peak, killed)
        if finished.number in self._spread:
            self._tell_of(self._spread.part_ended((agent.name, worker), finished, leaving=bool(agent.leaving)))
        elif not agent.leaving:
            self._events.append(finished)
        elif finished.state in _MOVED:
            self._events.append(replace(finished, moved=True))
        if agent.leaving:
            self._tell_of(self._remote_slots.lose(agent, slots))
        elif not agent.busy:
            agent.idle_since = time.monotonic()
        if agent.afterwards is not None and not agent.coming_home:
            agent.afterwards()
        for launch in self._spread.release():
            self.launch(*launch)
