"""Agent on a node that shares no disk with its head: it works in a separate folder, and its files are in a storage.

It starts in the folder with the unpacked code; the head's data for its nodes is read from stdin, as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.executor.code_version import CodeVersion
from trainyard.sweep.executor.meeting import HeadAddress, write_meeting
from trainyard.sweep.executor.remote_agent import RemoteAgent
from trainyard.sweep.executor.shipping.courier import Courier
from trainyard.sweep.executor.shipping.files import Action, AgentFiles
from trainyard.sweep.executor.shipping.home import ALIVE
from trainyard.sweep.executor.shipping.mirror import Mirror
from trainyard.sweep.executor.shipping.portable import Folders
from trainyard.sweep.executor.shipping.storage import Storage
from trainyard.sweep.executor.worker import Place
from trainyard.track.variables import GIT_FACTS

CODE = (
    "import os, sys; own = [os.path.join(os.getcwd(), each) for each in sys.argv[1:]]; "
    "sys.path[:1] = own; os.environ['PYTHONPATH'] = os.pathsep.join(own); "
    "from trainyard.sweep.executor.shipping.node import main; sys.exit(main())"
)
"""Code that starts it with the entries of `sys.path` in the unpacked code as arguments."""
_ALIVE_EVERY = 5.0  # seconds between two heartbeats in the storage
_LOCK = "lock"


class NodeFiles(AgentFiles):
    """Files that are transferred between the folder of a node and the storage.

    Args:
        folder: the folder of this agent only.
        told: the data of the head for its nodes.
        code: the folder with the unpacked code.

    Raises:
        TrainyardError: the storage cannot be used from here.
    """

    def __init__(self, folder: Path, told: Mapping[str, Any], code: Path) -> None:
        home = Path(told["sweep"])
        cwd = Path(told["cwd"])
        self._cwd = folder / "cwd"
        super().__init__(self._cwd / home.relative_to(cwd) if home.is_relative_to(cwd) else folder / "sweep")
        for each in (self._cwd, self.directory):
            each.mkdir(parents=True, exist_ok=True)
        unpacked = {each: str(code / str(index)) for index, each in enumerate(told["code"])}
        self.folders = Folders((told["sweep"], str(self.directory)), unpacked)
        self._names = {str(self.directory): told["sweep"], str(self._cwd): told["cwd"]}
        self._names |= {own: name for name, own in unpacked.items()}
        for each in self._project(cwd):
            if not (self._cwd / each.name).exists():
                (self._cwd / each.name).symlink_to(each)
        self.version = CodeVersion(**told["version"])
        self._storage = _seen(told["storage"])
        self._couriers: dict[Hashable, tuple[Courier, list[Mirror]]] = {}
        write_meeting(self.directory, HeadAddress(**told["head"]), told["token"])
        git = folder / "git.json"
        git.write_text(json.dumps(told["git"]))
        os.environ[GIT_FACTS] = str(git)
        self._alive: _Alive | None = None

    def _project(self, cwd: Path) -> list[Path]:
        """Return the received copy of the working folder of the head."""
        here = self.folders.located(str(cwd))
        return sorted(Path(here).iterdir()) if here != str(cwd) else []

    def place(self, task: Any) -> Place:
        return Place(str(self._cwd), list(sys.path), [self.folders.located(each) for each in task["argv"]])

    def show_life(self, name: str) -> None:
        """Show in the storage that the agent lives, from now on."""
        self._alive = _Alive(self._storage, f"{ALIVE}/{name}")

    def begin(self, key: Hashable, roots: list[str], then: Action) -> None:
        mirrors = [Mirror(self._storage, self.directory, root, {}, self._names) for root in roots]

        def carry(how: Callable[[Mirror], None]) -> None:
            self._storage.marked()
            for mirror in mirrors:
                how(mirror)

        courier = Courier(lambda: carry(Mirror.pull), lambda: carry(Mirror.push), self.arrivals, _tell)
        self._couriers[key] = courier, mirrors
        courier.tell_begun(then)

    def ask(self, key: Hashable, then: Action) -> None:
        self._couriers[key][0].ask(then)

    def end(self, key: Hashable, then: Action) -> None:
        courier, mirrors = self._couriers[key]

        def ended() -> None:
            del self._couriers[key]
            for mirror in mirrors:
                mirror.forget()
            then()

        courier.end(ended)

    @property
    def busy(self) -> bool:
        return bool(self._couriers)

    def close(self) -> None:
        for courier, _ in self._couriers.values():
            courier.abandon()
        if self._alive is not None:
            self._alive.end()
        super().close()


class _Alive:
    """Sign of life of an agent in a storage, for the heads after its own."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="trainyard alive", daemon=True)
        self._thread.start()

    def _show(self) -> None:
        count = 0
        while True:
            count += 1
            with suppress(Exception):  # the next one will be seen
                self._storage.write(self._name, str(count).encode())
            if self._ended.wait(_ALIVE_EVERY):
                break
        with suppress(Exception):
            self._storage.remove(self._name)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(10)


def _seen(url: str) -> Storage:
    """Return the storage of a sweep as this machine sees it."""
    try:
        storage = Storage(url)
        storage.marked()
    except Exception as error:  # a storage's own, of many kinds
        told = error.hint if isinstance(error, ConfigError) else str(error) or type(error).__name__
        raise TrainyardError(
            f"{os.uname().nodename} cannot read the storage of the sweep (hydra.launcher.storage): {told.rstrip('.')}."
        ) from error
    return storage


def _tell(line: str) -> None:
    print(line, flush=True)


def own_folder() -> tuple[Path, int]:
    """Create a folder for this process only, remove the folders of killed processes, and return it with its lock."""
    base = Path(tempfile.gettempdir()) / f"trainyard-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    one_at_a_time = os.open(base / f".{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        for old in base.glob("agent-*"):
            _remove_left(old)
        folder = Path(tempfile.mkdtemp(prefix="agent-", dir=base))
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder, lock
    finally:
        os.close(one_at_a_time)


def _remove_left(folder: Path) -> None:
    with suppress(OSError):
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)


def main() -> int:
    """Run an agent to its end, and return the exit status: 2 if it found no head or no storage, or was refused."""
    told = json.load(sys.stdin)
    folder, lock = own_folder()
    try:
        files = NodeFiles(folder, told, Path.cwd())
        agent = RemoteAgent(files.directory, files)
        files.show_life(agent.name)
        return agent.run()
    except TrainyardError as error:
        print(error, file=sys.stderr, flush=True)
        return error.status
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


if __name__ == "__main__":
    sys.exit(main())
