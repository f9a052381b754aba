"""Fork server of `forked`: a process that has imported what trainings import, and forks programs on request.

A forked program is a process like one that was started, from its pid to its exit: it has its own environment, folder,
files, session and signals, and runs as `__main__`. What differs is that the imports are done, and that it ends with its
threads and its `atexit` functions: to finalize all modules would copy the memory that they share with this process, at
ten times the cost of the fork. The same holds for the first Python processes that it starts itself (the agent of a
sweep, the shipper, ranks): each is a child that was forked before the program began, and has waited since.
"""

from __future__ import annotations

import _posixsubprocess
import atexit
import fcntl
import gc
import importlib
import io
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

PACKET = 1 << 17
PATH = list(sys.path[1:])  # without this file's folder
FLAGS = ("-P", "-u")

Request = dict[str, Any]


def serve(server: socket.socket) -> tuple[Request, list[int]] | None:
    """Fork programs until the other end is closed; in a forked process, return its request and its files."""
    watched: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for readable in connection.wait([server, *watched]):
            if isinstance(readable, int):
                pid, channel = watched.pop(readable)
                os.close(readable)
                tell(channel, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                channel.close()
                continue
            packet, fds, _, _ = socket.recv_fds(server, PACKET, 4, socket.MSG_CMSG_CLOEXEC)
            if not packet:
                return None
            pid = os.fork()
            if pid == 0:
                server.close()
                for pidfd, (_, other) in watched.items():
                    os.close(pidfd)
                    other.close()
                os.close(fds.pop())
                return json.loads(packet), fds
            channel = socket.socket(fileno=fds.pop())
            for fd in fds:
                os.close(fd)
            watched[os.pidfd_open(pid)] = pid, channel
            tell(channel, pid)


def tell(channel: socket.socket, number: int) -> None:
    with suppress(ConnectionError):  # nobody waits for this process any more
        channel.send(str(number).encode())


class Spares:
    """Children of a program that wait to be one of the processes that it starts.

    Args:
        starts: a file that gets the command of each process that the program and they start.
    """

    def __init__(self, starts: str | None) -> None:
        self.waiting: list[tuple[int, socket.socket]] = []
        self.starts = starts
        self.exec = _posixsubprocess.fork_exec

    def fork(self, count: int, files: list[int]) -> tuple[Request, list[int]] | None:
        """Fork them; return None here, and in one of them, once it is needed, its request and its files."""
        subprocess._fork_exec = self.start  # type: ignore[attr-defined]
        _posixsubprocess.fork_exec = self.start
        for _ in range(count):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                ours.close()
                for _, other in self.waiting:
                    other.close()
                self.waiting.clear()
                for fd in files:
                    os.close(fd)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                packet, fds, _, _ = socket.recv_fds(theirs, PACKET, 100, socket.MSG_CMSG_CLOEXEC)
                if not packet:
                    os._exit(0)
                theirs.close()
                return json.loads(packet), fds
            theirs.close()
            self.waiting.append((pid, ours))
        return None

    def start(self, args: Any, executables: Any, close_fds: Any, keep: Any, cwd: Any, env: Any, *more: Any) -> int:
        """Stand in for `_posixsubprocess.fork_exec`, which `subprocess` and `multiprocessing` call."""
        p2cread, _, _, c2pwrite, _, errwrite, _, errpipe, _, session = more[:10]
        command = [os.fsdecode(each) for each in args]
        if self.starts is not None:
            with Path(self.starts).open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(command)}\n")
        environ = dict(os.environ) if env is None else dict(os.fsdecode(each).split("=", 1) for each in env)
        if not (self.waiting and close_fds and command[0] == sys.executable and can_be(command, environ)):
            return self.exec(args, executables, close_fds, keep, cwd, env, *more)
        fds = {0: p2cread, 1: c2pwrite, 2: errwrite} | {fd: fd for fd in keep if fd != errpipe}
        fds = {target: target if fd == -1 else fd for target, fd in fds.items()}
        request = asked(command, environ, str(Path.cwd()) if cwd is None else os.fsdecode(cwd), bool(session), [*fds])
        request["blocked"] = list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        pid, channel = self.waiting.pop(0)
        socket.send_fds(channel, [json.dumps(request).encode()], [*fds.values()])
        channel.close()
        return pid


def can_be(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a forked process can be this one: there is nothing that only the start of an interpreter can do."""
    arguments = without_flags(command)
    known = bool(arguments) and (arguments[0] in ("-c", "-m") or arguments[0][:1] != "-")
    fixed = {name for name in environ | os.environ if name.startswith("PYTHON")} - {"PYTHONPATH"}
    sites = [Path(folder, "sitecustomize.py") for folder in environ.get("PYTHONPATH", "").split(os.pathsep)]
    same = all(environ.get(name) == STARTED.get(name) for name in fixed) and not any(map(Path.exists, sites))
    return known and same and "resource_tracker" not in command[-1]  # which imports nothing


def without_flags(command: Sequence[str]) -> list[str]:
    own = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    arguments = list(command[1:])
    while arguments and (arguments[0] in FLAGS or arguments[0] in own):
        del arguments[0]
    return arguments


def asked(command: Sequence[str], environ: Mapping[str, str], cwd: str, session: bool, targets: list[int]) -> Request:
    """The request for a process, whose files are sent along, in the order of `targets`."""
    return {
        "args": without_flags(command),
        "flags": [flag for flag in command[1:] if flag in FLAGS],
        "cwd": cwd,
        "env": dict(environ),
        "session": session,
        "targets": targets,
        "cores": sorted(os.sched_getaffinity(0)),
        "blocked": [],
        "spares": 0,
        "starts": None,
    }


def become(request: Request, fds: list[int]) -> None:
    """Be the process that was asked for, but for its code."""
    above = max(request["targets"]) + 1
    given = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in fds]  # out of the way of the targets
    for fd in fds:
        os.close(fd)
    for fd, target in zip(given, request["targets"], strict=True):
        os.dup2(fd, target)
        os.close(fd)
    unbuffered = "-u" in request["flags"] or bool(request["env"].get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc] # noqa: SIM115
    for name, fd, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        binary: Any = open(fd, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
        line_buffering = fd == 2 and not unbuffered
        file = io.TextIOWrapper(binary, None, errors, line_buffering=line_buffering, write_through=unbuffered)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    os.sched_setaffinity(0, request["cores"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def program(request: Request) -> tuple[Any, dict[str, Any]]:
    """The code that Python runs with these arguments, and its `__main__`."""
    first, *rest = request["args"]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.orig_argv = [sys.executable, *request["flags"], first, *rest]
    code: Any
    if first == "-c":
        code, folder = rest.pop(0), ""
        sys.argv = ["-c", *rest]
    elif first == "-m":
        code, folder = f"import runpy; runpy._run_module_as_main({rest.pop(0)!r})", str(Path.cwd())
        sys.argv = ["-m", *rest]
    else:
        code, folder = compile(Path(first).read_bytes(), first, "exec"), str(Path(first).resolve().parent)
        sys.argv, main.__file__ = [first, *rest], str(Path(first).absolute())
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [*([] if "-P" in request["flags"] else [folder]), *path, *PATH]
    return code, main.__dict__


def run(code: Any, variables: dict[str, Any]) -> None:
    """Run a program and end the process as the interpreter does, but for the finalization of modules."""
    status: Any = None
    interrupted = False
    try:
        exec(code, variables)
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
    if not (status is None or isinstance(status, int)):
        print(status, file=sys.stderr)
        status = 1
    for ending in (threading._shutdown, atexit._run_exitfuncs, flush):  # type: ignore[attr-defined]
        try:
            ending()
        except BaseException:
            traceback.print_exc()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((status or 0) & 0xFF)


def flush() -> None:
    for file in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # there is none, it is closed, or nobody reads it
            file.flush()


def import_all(modules: Sequence[str]) -> None:
    from trainyard.track.shipper.__main__ import configure

    configure()  # before anything imports mlflow
    for module in modules:
        importlib.import_module(module)
    for handler in logging.root.handlers[:]:  # a program that has imported none of them has none
        logging.root.removeHandler(handler)
    logging.root.setLevel(logging.WARNING)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads, which no forked process would have"
    gc.collect()
    gc.freeze()


STARTED = dict(os.environ)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_all(sys.argv[2:])
    own = serve(socket.socket(fileno=int(sys.argv[1])))
    if own is not None:
        own = Spares(own[0]["starts"]).fork(own[0]["spares"], own[1]) or own
        become(*own)
        run(*program(own[0]))
