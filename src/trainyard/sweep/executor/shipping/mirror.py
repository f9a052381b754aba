"""Files of a task here and in a storage: changes since the last transfer are transferred in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from trainyard.files import remove
from trainyard.sweep.executor.shipping.storage import Storage
from trainyard.track import journal

State = dict[str, tuple[tuple[int, ...], str]]
"""Files that are equal on both sides: by name, each with a value that changes with its content on each side."""
_LAST = ("last.json", "run.json")
"""Files that refer to others, and are therefore transferred after them."""
_RECORDS = "hydra.yaml"
"""Hydra's record of the place in which a job ran."""


class Mirror:
    """A folder or file in a sweep's directory, and its counterpart with the same name in a storage.

    Journals only grow: if a part of a journal is here, only the rest is fetched. Only complete lines are transferred.

    Args:
        storage: the storage of the sweep.
        directory: the sweep's directory here.
        root: the folder or the file, relative to it.
        state: the files that are already equal; it is kept up to date.
        renamed: paths in Hydra's records that have another name there, by their name here.
    """

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        root: str,
        state: State,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._root = root
        self._state = state
        self._renamed = dict(renamed or {})

    def push(self) -> None:
        """Transfer local changes to the storage, including removals.

        Raises:
            Exception: the error of the storage; no file is transferred in part.
        """
        here = self._here()
        changed = [name for name, own in here.items() if name not in self._state or self._state[name][0] != own]
        gone = [name for name in self._state if name not in here]
        for name in sorted(changed, key=_order):
            try:
                self._put(name)
            except FileNotFoundError:
                if (self._directory / name).exists():
                    raise
                continue  # removed meanwhile
            self._state[name] = here[name], self._storage.version(name)
        for name in gone:
            self._storage.remove(name)
            del self._state[name]

    def pull(self) -> None:
        """Transfer changes from the storage, including removals.

        Raises:
            Exception: the error of the storage; no file is transferred in part.
        """
        there = self._storage.files(self._root)
        for name in sorted(there, key=_order):
            if name not in self._state or self._state[name][1] != there[name]:
                self._get(name)
                self._state[name] = _signature(self._directory / name), there[name]
        for name in [name for name in self._state if name not in there]:
            path = self._directory / name
            if path.exists() and _signature(path) == self._state[name][0]:
                path.unlink()
            del self._state[name]

    def meet(self) -> None:
        """Transfer changes in both directions; if a file has changed on both sides, the local one is kept."""
        here = self._here()
        for name, own in here.items():
            if name in self._state and self._state[name][0] != own:
                del self._state[name]
        self.push()
        self.pull()

    def forget(self) -> None:
        """Remove the files here; those in the storage stay."""
        remove(self._directory / self._root)
        self._state.clear()

    def _here(self) -> dict[str, tuple[int, ...]]:
        found = {}
        for path in self._paths():
            with suppress(FileNotFoundError):  # removed meanwhile
                found[str(path.relative_to(self._directory))] = _signature(path)
        return found

    def _paths(self) -> Iterable[Path]:
        whole = self._directory / self._root
        if whole.is_file():
            return [whole]
        return (path for path in whole.rglob("*") if not path.name.startswith(".") and path.is_file())

    def _put(self, name: str) -> None:
        path = self._directory / name
        if path.name == journal.FILE:
            content = path.read_bytes()
            self._storage.write(name, content[: content.rfind(b"\n") + 1])
        elif path.name == _RECORDS:
            text = path.read_text()
            for own, other in self._renamed.items():
                text = text.replace(own, other)
            self._storage.write(name, text.encode())
        else:
            self._storage.put(path, name)

    def _get(self, name: str) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == journal.FILE and name in self._state and _signature(path) == self._state[name][0]:
            with path.open("ab") as file:
                file.write(self._storage.read(name, file.tell()))
            return
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            self._storage.get(name, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _order(name: str) -> tuple[bool, str]:
    return name.rpartition("/")[2] in _LAST, name


def _signature(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
