"""Files of tasks at the head of a sweep whose nodes share no disk: they are copied to it from a storage."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainyard.errors import TrainyardError
from trainyard.sweep.executor.meeting import read_head, read_token
from trainyard.sweep.executor.shipping.code import code_folders, pack
from trainyard.sweep.executor.shipping.courier import Courier
from trainyard.sweep.executor.shipping.files import Action, HeadFiles
from trainyard.sweep.executor.shipping.mirror import Mirror, State
from trainyard.sweep.executor.shipping.portable import Folders
from trainyard.sweep.executor.shipping.storage import Storage
from trainyard.track.facts import git_facts

FOLDER = "storage"
_NAME = "name"
ALIVE = "alive"
"""Folder of a storage with a heartbeat of each agent."""


class HomeFiles(HeadFiles):
    """Files that are copied to the head through a storage, in which the sweep has a folder.

    `storage/` in the sweep's directory contains the name of this folder, and the state of the files of each job that
    are equal on both sides. A restarted head fetches the files that were written in the meantime, and sends the results
    of other agents.

    Args:
        storage: the storage of all sweeps.
        directory: the sweep's directory.
        tell: called with messages about failures.
    """

    shared = False

    def __init__(self, storage: Storage, directory: Path, tell: Callable[[str], object]) -> None:
        super().__init__(directory)
        self.code = code_folders()
        self.folders = Folders((str(directory), str(directory)), {each: each for each in self.code})
        self._all = storage
        self._storage = storage
        self._tell = tell
        self._couriers: dict[Hashable, Courier] = {}
        self._last: dict[str, Courier] = {}  # by root: those that may work yet, too

    def check(self) -> None:
        """Check that the storage can be written.

        Raises:
            ConfigError: the storage cannot be written.
        """
        self._all.check()

    def pack(self, archive: Path) -> None:
        """Write an archive with the code that nodes need.

        Raises:
            ConfigError: it is too much.
        """
        pack(self.code, archive, [self.directory])
        assert self.version  # that of what is packed

    def path(self) -> list[str]:
        """Return the entries of `sys.path` with code, as they are in the archive."""
        found = []
        for entry in sys.path:
            here = str(Path(entry or ".").absolute())
            for index, folder in enumerate(self.code):
                if here == folder or here.startswith(f"{folder}/"):
                    found.append(str(index) + here[len(folder) :])
        return found

    def prepare(self) -> None:
        path = self.directory / FOLDER / _NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(f"{self.directory.name}-{secrets.token_hex(6)}")
        self._storage = self._all.below(path.read_text())

    def open(self, fence: int) -> None:
        try:
            self._storage.mark({"fence": fence})
        except Exception as error:
            raise TrainyardError(
                f"{self._storage.url} cannot be written (hydra.launcher.storage): {str(error).rstrip('.')}."
            ) from error

    def told_to_nodes(self) -> str:
        """Return what an agent needs to know on its node, for `trainyard.sweep.executor.shipping.node`."""
        return json.dumps(
            {
                "head": asdict(read_head(self.directory)),
                "token": read_token(self.directory),
                "sweep": str(self.directory),
                "cwd": str(Path.cwd()),
                "code": self.code,
                "storage": self._storage.url,
                "version": asdict(self.version),
                "git": git_facts(Path.cwd()),
            }
        )

    def left_agents(self) -> dict[str, str]:
        found = {}
        for name in self._storage.files(ALIVE):
            with suppress(FileNotFoundError):
                found[name.removeprefix(f"{ALIVE}/")] = self._storage.read(name).decode()
        return found

    def forget_agent(self, name: str) -> None:
        self._storage.remove(f"{ALIVE}/{name}")

    def begin(self, key: Hashable, roots: list[str], then: Action) -> None:
        mirrors = [_KeptMirror(self._storage, self.directory, root) for root in roots]

        def carry(how: Callable[[_KeptMirror], None]) -> None:
            self._storage.marked()
            for mirror in mirrors:
                how(mirror)

        before = [self._last[root] for root in roots if root in self._last]
        courier = Courier(
            lambda: carry(_KeptMirror.meet), lambda: carry(_KeptMirror.pull), self.arrivals, self._tell, before
        )
        self._couriers[key] = courier
        self._last.update(dict.fromkeys(roots, courier))
        courier.tell_begun(then)

    def ask(self, key: Hashable, then: Action) -> None:
        courier = self._couriers.get(key)
        if courier is None:  # the task has no files
            then()
        else:
            courier.ask(then)

    def end(self, key: Hashable, then: Action) -> None:
        courier = self._couriers.get(key)
        if courier is None:
            then()
            return

        def ended() -> None:
            self._couriers.pop(key, None)
            self._last = {root: each for root, each in self._last.items() if each is not courier}
            then()

        courier.end(ended)

    def lose(self, key: Hashable) -> None:
        """Fetch the files that the task has left in the storage, for the last time, because it continues elsewhere."""
        self.end(key, lambda: None)

    def put_away(self, whole: bool) -> None:
        """End, and remove the sweep's files from the storage if all of them have been copied."""
        for courier in (left := {*self._last.values(), *self._couriers.values()}):
            courier.abandon()
        self._couriers.clear()
        self._last.clear()
        self.arrivals.clear()
        if whole and not left:
            with suppress(Exception):  # what is left there is found again by the next head
                self._storage.clear()
                (self.directory / FOLDER / _NAME).unlink()


class _KeptMirror(Mirror):
    """Mirror whose state is kept in a file, from one head of a sweep to the next."""

    def __init__(self, storage: Storage, directory: Path, root: str) -> None:
        self._file = directory / FOLDER / f"{root.replace('/', '_')}.json"
        self._name = storage.url
        state: State = {}
        with suppress(OSError, ValueError, KeyError):
            kept: Any = json.loads(self._file.read_bytes())
            if kept["storage"] == self._name:
                state = {name: (tuple(here), there) for name, (here, there) in kept["files"].items()}
        super().__init__(storage, directory, root, state)
        self._written = dict(state)

    def pull(self) -> None:
        try:
            super().pull()
        finally:
            self._write()

    def push(self) -> None:
        try:
            super().push()
        finally:
            self._write()

    def _write(self) -> None:
        if self._state != self._written:
            self._written = dict(self._state)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_name(f".{self._file.name}.tmp")
            temporary.write_text(json.dumps({"storage": self._name, "files": self._written}))
            temporary.replace(self._file)
