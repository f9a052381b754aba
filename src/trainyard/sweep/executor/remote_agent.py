"""Agent on a node: a fork server like that of the local executor, whose owner is a head on another machine.

    python -m trainyard.sweep.executor.remote_agent DIRECTORY

It dials the head of the sweep in a directory. Messages, each a JSON list:

    to the head                                     to the agent
    ["hello", {name, place, node, fence, version}]  ["welcome", {preload, settings, patience, grace}]
                                                    or ["refused", why]
    ["ready", [[device, threads], …]]               ["task", worker, {slots, threads, log, roots, cwd, path, argv,
    ["forked", worker, pid]                                  common, nodes}], the call
    ["refused", worker, error]                      ["signal", [worker, …], signum]
    ["woken", worker, index, at]                    ["common", key], what tasks have in common, pickled
    ["said", worker, text]                          ["answer", worker], the content
                                                    ["close"]
    ["ended", worker, status, peak, killed], the report
    ["failed", module, error]
    ["leaving", why]
    ["gone", why]

It leaves when it receives a signal (SIGTERM, SIGUSR2: its node is reclaimed), or when its head is lost. It then asks
its workers to end at a checkpoint, and ends after them.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from trainyard.errors import TrainyardError
from trainyard.files import DISK_PATIENCE
from trainyard.nodes import VARIABLE as NODES
from trainyard.sweep.executor.agent import Agent, AgentEndedError, ExecutorError
from trainyard.sweep.executor.code_version import CodeVersion
from trainyard.sweep.executor.local import memory_file
from trainyard.sweep.executor.meeting import AliveFile, HeadAddress, open_agent, read_head
from trainyard.sweep.executor.shipping.files import AgentFiles
from trainyard.sweep.executor.slots import Slot, find_slots
from trainyard.sweep.executor.transport import Transport, TransportError
from trainyard.sweep.executor.transport.base import BEAT, HEAD
from trainyard.sweep.executor.worker import worker_setting, write_task

CODE = (
    "import sys; directory, *sys.path = sys.argv[1:]; sys.argv[1:] = [directory]; "
    "from trainyard.sweep.executor.remote_agent import main; sys.exit(main())"
)
"""Code that starts an agent with the arguments DIRECTORY and the entries of `sys.path`."""
PLACE = "TRAINYARD_PLACE"
"""Variable of the environment with the agent's place, for pools that set it."""
_OF_A_STEP = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_EVERY = 0.5  # seconds between two looks at the head and at signals
_WELCOME = 120.0  # seconds to wait for the head's answer


class RemoteAgent:
    """The process of the agent next to its fork server, which relays messages between the fork server and the head.

    Args:
        directory: the sweep's directory.
        files: the handling of the files of tasks; None if they are already at their destination.

    Attributes:
        name: the name of the agent.

    Raises:
        TrainyardError: the directory or its head cannot be seen from here.
    """

    def __init__(self, directory: Path, files: AgentFiles | None = None) -> None:
        self._directory = directory
        self._files = files or AgentFiles(directory)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._transport: Transport
        self._address: HeadAddress
        self._transport, self._address = open_agent(directory, self.name)
        self._alive = AliveFile(directory, self.name)
        self._agent: Agent | None = None
        self._reports: dict[int, BinaryIO] = {}  # by the fork server's number
        self._heads: dict[int, int] = {}  # the head's number of a worker
        self._ours: dict[int, int] = {}  # and back
        self._asked: dict[int, list[int]] = {}  # signals, by the head's number, of workers whose files are on their way
        self._commons: dict[int, bytes] = {}
        self._held: list[tuple[int, Mapping[str, Any], bytes]] = []  # tasks whose workers are not forked yet
        self._patience = _WELCOME
        self._grace = 30.0
        self._why = ""  # why it leaves; empty while it stays
        self._told: int | None = None  # the signal that came
        self._lost = False
        self._kill_at: float | None = None
        self._closed = False

    def run(self) -> int:
        """Serve the head, and return the exit status."""
        for signum in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(signum, self._note)
        place, node = own_place(), os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        for name in _OF_A_STEP:
            os.environ.pop(name, None)  # a job that trains on one device is not a rank of this step
        self._say(
            "hello",
            {
                "name": self.name,
                "place": place,
                "node": node,
                "fence": self._address.fence,
                "version": asdict(self._files.version or CodeVersion.now()),
            },
        )
        try:
            while not self._is_over():
                self._look()
                self._hear()
        finally:
            if self._agent is not None:
                self._agent.close()
            self._files.close()
            self._alive.remove()
        if not self._closed and not self._lost:
            self._say("gone", self._why)
        self._transport.close(flush=5.0)
        return 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._told = signum

    def _is_over(self) -> bool:
        return self._closed or (bool(self._why) and not self._reports and not self._files.busy)

    def _say(self, *message: Any, payload: bytes = b"") -> None:
        self._transport.send(HEAD, list(message), payload)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Check for signals, and whether there is a head."""
        self._alive.tick()
        self._fork_held()
        self._obey_signal()
        silence = self._transport.silence(HEAD)
        if not self._lost and (silence > self._patience or (silence > 2 * BEAT and self._is_replaced())):
            self._lose_head(self._told_silence())
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at = time.monotonic() + self._grace
            self._signal(list(self._reports), signal.SIGKILL)
            self._closed = not self._reports  # what is left is a storage that fails

    def _obey_signal(self) -> None:
        if self._told is not None:
            # Slurm sends it to all processes of its job. A worker that gets it twice ends without a checkpoint.
            known = self._told == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
            self._leave(f"the agent received {signal.Signals(self._told).name}", ask=not known)

    def _told_silence(self) -> str:
        if self._agent is not None or self._address.kind == "files":
            return "the head does not respond"
        return (
            f"the head at {self._address.host}:{self._address.port} does not respond. If this node cannot reach this "
            "address, set hydra.launcher.address (Slurm) or hydra.launcher.head_address (Ray); on a shared disk, "
            "hydra.launcher.transport=files needs no port"
        )

    def _is_replaced(self) -> bool:
        with suppress(OSError, ValueError):
            return read_head(self._directory).fence != self._address.fence
        return False

    def _lose_head(self, why: str) -> None:
        self._lost = True
        print(f"This agent exits: {why}.", flush=True)
        self._kill_at = time.monotonic() + self._grace
        self._leave(why)

    def _leave(self, why: str, ask: bool = True) -> None:
        """Accept no more tasks, and ask running ones to end, unless this was already done."""
        if not self._why:
            self._why = why
            self._say("leaving", why)
            if ask:
                self._signal(list(self._reports), signal.SIGTERM)

    def _signal(self, workers: Sequence[int], signum: int) -> None:
        if self._agent is not None and workers:
            self._agent.send_signal(workers, signum)

    # -- messages ------------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        sources: list[Any] = [] if self._lost else [self._transport.fileno()]
        if self._agent is not None:
            sources.append(self._agent)
        connection.wait([*sources, self._files.arrivals.fileno()], _EVERY)
        # Before the ends of workers that got it too: the head has to know why they were interrupted.
        self._obey_signal()
        if not self._lost:
            try:
                for received in self._transport.receive(0):
                    self._obey(received.message, received.payload)
            except TransportError as error:
                if self._agent is None:
                    where = f"{self._address.host}:{self._address.port}"
                    raise TrainyardError(f"The agent cannot connect to the head at {where}: {error}.") from error
                self._lose_head(str(error))
        self._files.arrivals.handle()
        try:
            while self._agent is not None and (message := self._agent.receive(0)) is not None:
                self._pass_on(message)
        except AgentEndedError:
            self._reports.clear()
            for number in self._heads.values():
                self._files.end(number, lambda: None)
            self._leave("its fork server ended")
            try:
                assert self._agent is not None
                self._agent.restart()
            except ExecutorError as error:
                self._say("failed", "torch", str(error))

    def _obey(self, message: list[Any], call: bytes) -> None:
        match message:
            case ["welcome", welcome]:
                self._begin(welcome)
            case ["refused", why]:
                self._closed = True
                raise TrainyardError(f"The head refuses this agent: {why}")
            case ["task", worker, task]:
                if not self._why:  # else the head is already informed, or soon will be
                    self._asked[worker] = []
                    self._files.begin(worker, task["roots"], partial(self._hold, worker, task, call))
            case ["common", key]:
                self._commons[key] = call
            case ["signal", workers, signum]:
                self._signal([self._ours[each] for each in workers if each in self._ours], signum)
                for each in self._asked.keys() & set(workers):
                    self._asked[each].append(signum)
            case ["answer", worker]:
                if worker in self._ours and self._agent is not None:
                    with memory_file() as file:
                        file.write(call)
                        file.flush()
                        self._agent.answer(self._ours[worker], file)
            case ["close"]:
                self._closed = True

    def _begin(self, welcome: Mapping[str, Any]) -> None:
        self._patience, self._grace = welcome["patience"], welcome["grace"]
        os.environ[DISK_PATIENCE] = str(self._patience)
        self._slots = own_slots(**welcome["settings"])
        self._agent = Agent(welcome["preload"], max(slot.threads for slot in self._slots))

    def _hold(self, number: int, task: Mapping[str, Any], call: bytes) -> None:
        self._held.append((number, task, call))
        self._fork_held()

    def _fork_held(self) -> None:
        """Fork the requested workers if the sweep's directory is available; otherwise, a new directory would be
        created."""
        while self._held and (self._why or self._directory.exists()):
            self._fork(*self._held.pop(0))

    def _fork(self, number: int, task: Mapping[str, Any], call: bytes) -> None:
        asked = self._asked.pop(number)
        if self._why:
            self._files.end(number, lambda: None)
            return
        assert self._agent is not None
        slots = [self._slots[index] for index in task["slots"]]
        folders = self._files.folders
        log = None if task["log"] is None else Path(folders.located(task["log"]))
        setting = worker_setting(slots, task["threads"], log, self._files.place(task), folders)
        if task["nodes"] is not None:
            setting.environ[NODES] = json.dumps(task["nodes"])
        with memory_file() as file:
            common = b"" if task["common"] is None else self._commons[task["common"]]
            write_task(file, setting, call, common)
            report = memory_file()
            worker = self._agent.fork(file, report)
        self._reports[worker] = report
        self._heads[worker], self._ours[number] = number, worker
        for signum in asked:
            self._signal([worker], signum)

    def _pass_on(self, message: list[Any]) -> None:
        match message:
            case ["ready"]:
                self._say("ready", [[slot.device, slot.threads] for slot in self._slots])
            case ["failed", *_]:
                self._say(*message)
            case [kind, worker, *rest]:
                number, report = self._heads[worker], b""
                if kind in ("ended", "refused"):
                    del self._heads[worker], self._ours[number]
                    with self._reports.pop(worker) as file:
                        file.seek(0)
                        report = file.read()
                # What the head reads then has to be where it reads it.
                say = partial(self._say, kind, number, *rest, payload=report)
                ask, at_once = self._files.ask, lambda _, then: then()
                carry = {"forked": at_once, "woken": ask, "said": ask}.get(kind, self._files.end)
                carry(number, say)


def own_slots(cores: int | None = None, **settings: Any) -> list[Slot]:
    """Return the slots of this agent.

    Args:
        cores: the number of cores that the queue assigned to it. If it can use more, tasks are not bound to cores,
            because those of other agents on this machine would be bound to the same cores.
        **settings: the arguments of `find_slots`.
    """
    slots = find_slots(**settings)
    if cores is None or len(os.sched_getaffinity(0)) <= cores:
        return slots
    return [replace(slot, cpus=None) for slot in slots]


def own_place() -> str:
    """Return the place of this agent: that of its pool, or its job in Slurm (`12`, `12_3`), or its process."""
    environ = os.environ
    if PLACE in environ:
        return environ[PLACE]
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID") or str(os.getpid())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an agent to its end, and return the exit status: 2 if it found no head, or was refused."""
    parser = argparse.ArgumentParser("trainyard agent", description="An agent of the sweep in a directory.")
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    try:
        return RemoteAgent(options.directory).run()
    except TrainyardError as error:
        print(error, file=sys.stderr, flush=True)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
