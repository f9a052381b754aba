"""Process that holds the connection to a Ray cluster: one actor for each agent, which starts it as a process on a node.

It is a separate process, because Ray starts threads and handles signals in the process that uses it, and ends this
process when its cluster is lost. Messages are JSON lists, one per line. In, on stdin:

    ["place", place, {command, cwd, log, environ, told}]    start an agent
    ["take", place]                                         end one
    ["close"]                                               end all, and this process

Out, on stdout: `["imported"]`, then `["retrying", why]` after each attempt to connect that is repeated, then
`["connected", nodes]` with the resources of each node, or `["failed", why]`; then for each agent `["placed", place]`
when it has a node, and `["ended", place, why, said]`, with what it printed.

If its head disappears, this process stays as long as the agents, which end at a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainyard.sweep.executor.agent import in_words
from trainyard.track.variables import RAY_NODE

CODE = (
    "import sys; sys.path[:] = sys.argv[6:]; "
    "from trainyard.sweep.executor.ray_process import main; main(*sys.argv[1:6])"
)
"""Code that starts this process with the arguments ADDRESS, OPTIONS, LINGER, REACH, CODE and the entries of
`sys.path`."""
ATTEMPTS = 4
PAUSE = 1.0  # seconds between two attempts to connect
_OF_BUSY_SERVER = ("Starting Ray client server failed", "Proxy failed to Connect to backend")
_PROBE = 10.0  # seconds to wait for a connection
_EVERY = 0.3  # seconds between two looks at the actors
_LAST = 8.0  # seconds that agents have to end when this process closes
_OF_NODE = ("RAY_", "SLURM", "SBATCH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_TOKEN = "set RAY_AUTH_MODE=token, and store the token of the cluster in RAY_AUTH_TOKEN or in ~/.ray/auth_token"
_DIES_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == {parent} or sys.exit(1); "


class AgentActor:
    """Actor that starts an agent on its node. Pickled by value: nodes need nothing of Trainyard to unpickle it."""

    def run(
        self, command: Sequence[str], cwd: str, log: str, environ: Mapping[str, str], told: str | None, gpus: int
    ) -> tuple[str, int, str]:
        """Run an agent to its end, and return its host, its status and its output.

        Ray ends the process of an actor with SIGKILL. The agent ends with it, and its workers with the agent.

        Args:
            command: starts an agent. Its interpreter is that of the head.
            cwd: the folder in which it starts.
            log: the file for its output.
            environ: its environment, which is the head's.
            told: the input of the agent on stdin. In this case, the node does not see the folders of the head: its own
                interpreter, environment and folders are used.
            gpus: its GPUs.
        """
        import ray

        host = socket.gethostname()
        own = {name: value for name, value in os.environ.items() if told is not None or name.startswith(_OF_NODE)}
        own.pop("OMP_NUM_THREADS", None)  # Ray's own idea
        if not gpus:
            own["CUDA_VISIBLE_DEVICES"] = ""
        given = {name: value for name, value in environ.items() if name not in own}
        given[RAY_NODE] = ray.get_runtime_context().get_node_id()
        program, option, code, *arguments = command
        if told is not None:
            program, cwd = sys.executable, str(Path.cwd())
            log = tempfile.NamedTemporaryFile(prefix="trainyard-", suffix=".out", delete=False).name  # noqa: SIM115
        code = _DIES_WITH_PARENT.format(parent=os.getpid()) + code
        try:
            with Path(log).open("a") as file:
                begin = file.tell()
                status = subprocess.run(
                    [program, option, code, *arguments],
                    cwd=cwd,
                    env=given | own,
                    input=(told or "").encode(),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                ).returncode
            with Path(log).open(errors="replace") as file:
                file.seek(begin)
                said = file.read()
            if told is not None:
                Path(log).unlink()
        except OSError as error:
            hint = " Nodes that do not share the disk of the head need hydra.launcher.storage." if told is None else ""
            return host, 1, f"the node cannot open {error.filename}: {error.strerror}.{hint}"
        return host, status, said

    def placed(self) -> None:
        """Return when the actor has a node."""

    def wait(self) -> tuple[str, int, str]:
        """Return after `run`, whose own result was lost in transit."""
        return socket.gethostname(), 0, ""


class Placer:
    """Places actors, and reports how they end.

    Args:
        options: the options of each actor.
        linger: seconds to stay for agents whose head is gone.
        say: sends a message to the head.
    """

    def __init__(self, options: Mapping[str, Any], linger: float, say: Callable[..., None]) -> None:
        import ray
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        self._ray = ray
        self._actor = ray.remote(AgentActor).options(**options, max_restarts=0)
        self._gpus = options.get("num_gpus", 0)
        self._linger = linger
        self._say = say
        self._actors: dict[str, Any] = {}
        self._unplaced: dict[Any, str] = {}  # the place of each actor that waits for a node, by a result
        self._runs: dict[Any, str] = {}  # the place of each result that is to come
        self._head = os.getppid()

    def serve(self) -> None:
        """Serve the head until it closes this process or disappears."""
        rest = b""
        stdin = select.poll()
        stdin.register(0, select.POLLIN)
        while os.getppid() == self._head:
            self._look()
            if not stdin.poll(_EVERY * 1000):
                continue
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if message[0] == "close":
                    self._stay(_LAST)
                    return
                self._obey(message)
        self._stay(self._linger)

    def _obey(self, message: list[Any]) -> None:
        match message:
            case ["place", place, given]:
                actor = self._actors[place] = self._actor.remote()
                self._unplaced[actor.placed.remote()] = place
                self._runs[actor.run.remote(**given, gpus=self._gpus)] = place
            case ["take", place] if place in self._actors:
                self._ray.kill(self._actors[place])

    def _stay(self, limit: float) -> None:
        """Stay for agents that work, at most for some seconds."""
        waiting = time.monotonic() + limit
        while self._runs and time.monotonic() < waiting:
            self._look()
            time.sleep(0.05)

    def _look(self) -> None:
        if not self._runs:
            return
        if self._unplaced:
            placed, _ = self._ray.wait(list(self._unplaced), num_returns=len(self._unplaced), timeout=0)
            for each in placed:
                self._say("placed", self._unplaced.pop(each))  # or it has ended, which is reported next
        ended, _ = self._ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        for run in ended:
            place = self._runs.pop(run)
            said = ""
            try:
                host, status, said = self._ray.get(run)
                why = f"its process on {host} {in_words(status)}"
            except self._ray.exceptions.ActorUnavailableError:  # it may live: only the connection broke
                self._runs[self._actors[place].wait.remote()] = place
                continue
            except Exception as error:  # Ray's own, of several kinds
                why = reason(str(error))
            del self._actors[place]
            self._say("ended", place, why, said)


def reason(told: str) -> str:
    """Return Ray's information about the end of an actor, in one line."""
    because = re.search(r"because (its [^.\n]+|[^.\n]+)", told)
    return because[1] if because else told.strip().partition("\n")[0].rstrip(".")


def noted_cluster() -> str | None:
    """Return the address of the cluster that Ray has noted on this machine; its head may have been killed since."""
    with suppress(ImportError, OSError):  # private
        from ray._private.utils import read_ray_address

        noted: str | None = read_ray_address()
        return noted
    return None


def probe(address: str) -> None:
    """Check that a server answers at an address.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _PROBE).close()


class BusyServerError(Exception):
    """The server of Ray's client could not start a process for this client."""

    def __init__(self, attempts: int, why: str) -> None:
        super().__init__(
            f"The server of Ray Client at this address could not start a process for this command in {attempts} "
            f"attempt{'s' * (attempts > 1)}: {why.rstrip('.')}. The logs are on the head node, by "
            "default in /tmp/ray/session_latest/logs"
        )


def connect(address: str, limit: float, retry: Callable[[str], object], **options: Any) -> None:
    """Connect to a cluster.

    The server of Ray's client starts a process for each client, within a time limit of its own. On a busy head node,
    this process may end or start too late; the connection is then retried.

    Args:
        address: the address of the cluster.
        limit: seconds after which no further attempt starts.
        retry: called with the reason before each further attempt.
        options: options of `ray.init`.

    Raises:
        BusyServerError: no attempt succeeded.
    """
    import ray

    until = time.monotonic() + limit
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(address, log_to_driver=False, **options)
            return
        except Exception as error:  # ConnectionAbortedError with the traceback of the server as its text
            if not any(each in str(error) for each in _OF_BUSY_SERVER):
                raise
            if attempt == ATTEMPTS or time.monotonic() >= until:
                raise BusyServerError(attempt, _last_line(str(error))) from error
            retry(_last_line(str(error)))
            time.sleep(PAUSE)


def _last_line(told: str) -> str:
    """Return the error at the end of a traceback of Ray's client server; other texts as they are."""
    return told.strip().splitlines()[-1] if "Traceback" in told else told


def failure(error: Exception, answers: bool) -> str:
    """Return why a cluster cannot be used, in one line for users.

    Args:
        error: the error that Ray raised.
        answers: whether a server answers at the address: Ray reports a wrong token as if there were no server.
    """
    told = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    told = _last_line(told)
    told = " ".join(told.split()).rstrip(".")
    if told.startswith("Could not find any running Ray instance"):  # Ray's advice is for its own commands
        return "No Ray cluster is running on this machine, and RAY_ADDRESS is not set"
    if type(error).__name__ == "AuthenticationError":
        return f"The token of the cluster is missing or invalid: {_TOKEN}"
    if answers and re.search("Failed to connect|connection timeout", told):
        return f"{told}, although a server answers there. If the server requires a token, {_TOKEN}"
    return told


def main(address: str, options: str, linger: str, reach: str, code: str) -> None:
    """Connect to a cluster within `reach` seconds, and serve the head. `code` is the archive that its nodes unpack;
    empty for none."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no message

    def say(*message: Any) -> None:
        print(json.dumps(message), file=out, flush=True)

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    say("imported")
    answers, origin = False, ""  # where the address comes from, if it is not the setting
    try:
        if address == "auto" and (variable := os.environ.get("RAY_ADDRESS", "auto")) != "auto":
            address, origin = variable, f"RAY_ADDRESS={variable}: "
        if address != "local" and (known := noted_cluster() if address == "auto" else address):
            origin = f"{known}: " if address == "auto" else origin
            probe(known)
            answers = True
        own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        if code:
            own["runtime_env"] = {"working_dir": code}
        connect(address, float(reach), lambda why: say("retrying", why), **own)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    except Exception as error:  # Ray's own, of many kinds
        say("failed", f"{origin}{failure(error, answers)}")
        return
    say("connected", nodes)
    Placer(json.loads(options), float(linger), say).serve()
    ray.shutdown()
