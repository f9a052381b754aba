"""Process of the agent, a fork server: it imports what tasks need, and forks workers on request.

`multiprocessing` has a fork server too. It runs the user's script again in every worker, does not have the caller's
`sys.path` (before Python 3.14), is shared by the entire process, and does not end its workers when the caller dies.

Messages are JSON lists, one per packet. In: `["fork", worker]` with two files, the task and the report;
`["signal", [worker, ...], signum]`; `["answer", worker]` with a file, for the worker's line. Out: `["ready"]` or
`["failed", module, error]`, once; `["forked", worker, pid]` or `["refused", worker, error]`;
`["woken", worker, index, at]` when a job of the worker's task has reached a place; `["said", worker, text]` when it has
said something on its line; `["ended", worker, status, peak, killed]` with its peak of memory in bytes, and whether the
system has killed a process for lack of memory meanwhile. When the other end is gone, all workers are killed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import math
import os
import signal
import socket
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any, NoReturn

from trainyard.sweep.executor.out_of_memory import kills
from trainyard.sweep.executor.wake import Line, Wake, read_wakes
from trainyard.sweep.executor.worker import one_line, work

PACKET = 1 << 16  # maximum size of a message in bytes
_PR_SET_PDEATHSIG = 1
_ASKING = (signal.SIGINT, signal.SIGTERM)  # signals that ask a worker to end
_CUDA_DRIVER = "libcuda.so.1"
_CUDA_SUCCESS = 0


def serve(fd: int, preload: Sequence[str], patience: float = math.inf) -> NoReturn:
    """Import the modules of `preload`, then serve the socket `fd` until its other end is closed, or until no message
    has come for `patience` seconds after the import."""
    # A queue sends its signals to all processes of a job; what follows from them is the owner's to decide.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    agent = _Agent(socket.socket(fileno=fd))
    agent.load(preload)
    if math.isinf(patience) or connection.wait([agent.owner], patience):
        agent.loop()
    agent.kill_all()
    os._exit(0)


def cuda_is_initialized() -> bool:
    """Return whether this process has initialized CUDA's driver, after which no forked process can use CUDA.

    `torch.cuda.is_initialized` does not see a `cuInit` by others, or by torch itself when it counts the devices.
    """
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER, mode=os.RTLD_NOLOAD)
    except OSError:  # not loaded
        return False
    status: int = driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
    return status == _CUDA_SUCCESS  # else CUDA_ERROR_NOT_INITIALIZED, or there is no device


@dataclass
class _Agent:
    owner: socket.socket
    libc: ctypes.CDLL = field(default_factory=lambda: ctypes.CDLL(None))
    pids: dict[int, int] = field(default_factory=dict)  # by worker
    watched: dict[int, int] = field(default_factory=dict)  # worker by pidfd
    kills: dict[int, int] = field(default_factory=dict)  # by worker, when it was forked
    lines: dict[int, socket.socket] = field(default_factory=dict)  # by worker, as long as the other end is open
    wakes: tuple[int, int] = field(default_factory=os.pipe)  # both ends of the pipe that workers report through

    def load(self, preload: Sequence[str]) -> None:
        gc.disable()  # nothing that is imported becomes garbage: a sixth of the time
        for module in preload:
            try:
                importlib.import_module(module)
            except Exception as error:
                self.say("failed", module, one_line(error))
                return
            if cuda_is_initialized():
                self.say(
                    "failed", module, "Importing this module initializes CUDA, after which workers cannot use CUDA"
                )
                return
        # Workers neither collect nor finalize the objects that exist now, which would copy memory pages they share with
        # this process. (Torch would also unregister each of its operator libraries: 20 ms.)
        for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
            finalizer.atexit = False
        gc.freeze()
        gc.enable()
        self.say("ready")

    def loop(self) -> None:
        while True:
            speaking = {line: worker for worker, line in self.lines.items()}
            readables = connection.wait([self.owner, self.wakes[0], *speaking, *self.watched])
            if self.wakes[0] in readables:  # first of all: a worker reports before it ends
                for wake in read_wakes(self.wakes[0]):
                    self.say("woken", *wake)
            for readable in readables:
                if isinstance(readable, socket.socket) and readable in speaking:
                    self.pass_on(speaking[readable])
            for readable in readables:
                if readable == self.wakes[0]:
                    continue
                if isinstance(readable, int):
                    self.ended(readable)
                elif readable is self.owner and not self.obey():
                    return

    def obey(self) -> bool:
        """Handle the next message; return False if there will be no more."""
        try:
            packet, fds, _, _ = socket.recv_fds(self.owner, PACKET, 2, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        if not packet:
            return False
        match json.loads(packet):
            case ["fork", worker]:
                self.fork(worker, *fds)
            case ["answer", worker]:
                if worker in self.lines:
                    with suppress(ConnectionError):  # it has ended
                        socket.send_fds(self.lines[worker], [b"."], fds)
            case ["signal", workers, signum]:
                for worker in workers:
                    self.send_signal(worker, signum)
        for fd in fds:
            os.close(fd)
        return True

    def pass_on(self, worker: int) -> None:
        """Pass on what a worker has said; nothing said means that it has closed its line."""
        try:
            packet = self.lines[worker].recv(PACKET)
        except ConnectionError:
            packet = b""
        if packet:
            self.say("said", worker, packet.decode())
        else:
            self.lines.pop(worker).close()

    def fork(self, worker: int, task: int, report: int) -> None:
        agent = os.getpid()
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A worker begins with these ignored, as here: one that comes before `become_worker` changes that would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
        try:
            pid = os.fork()
        except OSError as error:
            line.close()
            theirs.close()
            self.say("refused", worker, one_line(error))
            return
        finally:
            if os.getpid() == agent:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING)
        if pid == 0:
            try:
                self.become_worker(agent)
                line.close()
                Line.of_process = Line(theirs)
                Wake.of_process = Wake(self.wakes[1], worker)
                work(os.fdopen(task, "rb"), os.fdopen(report, "wb"))
            finally:  # in every case, a worker must not return to serve
                os._exit(1)
        theirs.close()
        self.lines[worker] = line
        with suppress(OSError):  # in the worker as well: the first of the two calls counts
            os.setpgid(pid, pid)
        self.pids[worker] = pid
        self.kills[worker] = kills()
        self.watched[os.pidfd_open(pid)] = worker
        self.say("forked", worker, pid)

    def become_worker(self, agent: int) -> None:
        os.setpgid(0, 0)
        self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != agent:  # the agent died before the call
            os._exit(1)
        self.owner.close()
        os.close(self.wakes[0])
        for pidfd in self.watched:
            os.close(pidfd)
        for line in self.lines.values():
            line.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING)

    def send_signal(self, worker: int, signum: int) -> None:
        """Send a signal to a worker. SIGKILL also goes to all its children; other signals go to the worker only."""
        if worker in self.pids:
            with suppress(ProcessLookupError):
                (os.killpg if signum == signal.SIGKILL else os.kill)(self.pids[worker], signum)

    def ended(self, pidfd: int) -> None:
        worker = self.watched.pop(pidfd)
        os.close(pidfd)
        if worker in self.lines:
            self.lines.pop(worker).close()
        self.send_signal(worker, signal.SIGKILL)  # its remaining children; the number is not reused before waitpid
        _, status, usage = os.wait4(self.pids.pop(worker), 0)
        code, before = os.waitstatus_to_exitcode(status), self.kills.pop(worker)
        killed = code == -signal.SIGKILL and kills() > before
        self.say("ended", worker, code, usage.ru_maxrss * 1024, killed)

    def kill_all(self) -> None:
        for worker in self.pids:
            self.send_signal(worker, signal.SIGKILL)
        for pid in self.pids.values():
            os.waitpid(pid, 0)

    def say(self, *message: Any) -> None:
        with suppress(ConnectionError):  # the owner is gone: the loop will notice
            self.owner.send(json.dumps(message).encode())
