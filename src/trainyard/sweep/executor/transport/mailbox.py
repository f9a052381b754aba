"""Links as files in a directory that the head and its agents share, for networks without open ports.

    FOLDER/AGENT/to_head/000000000001      one file for each message, renamed to its final name when it is complete
    FOLDER/AGENT/to_agent/000000000001     removed by its reader
    FOLDER/AGENT/head, FOLDER/AGENT/agent  a number that grows while that end lives

Everybody with write access to the folder can send messages, so only its owner has access (mode 700). Messages do not
depend on the time or on the order in which a file system lists names: they are numbered, and read by number. While the
directory cannot be reached, both ends keep their messages.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.sweep.executor.transport.base import BEAT, HEAD, Received, Transport
from trainyard.sweep.executor.transport.frames import packed, unpacked
from trainyard.sweep.executor.transport.session import Session

_SHORTEST, _LONGEST = 0.02, 0.5  # seconds between two looks: the longer nothing has come, the longer


@dataclass
class _Box:
    """Both folders of an agent, seen from one end."""

    folder: Path
    ours: str
    theirs: str
    session: Session = field(default_factory=Session)
    beat: int = 0
    seen: bytes = b""
    ending: bool = False

    @property
    def outgoing(self) -> Path:
        return self.folder / f"to_{self.theirs}"

    @property
    def incoming(self) -> Path:
        return self.folder / f"to_{self.ours}"


class Mailbox(Transport):
    """One end: the head's without a name, an agent's with its name.

    Args:
        folder: the folder of all boxes.
        name: the agent's name, which no other agent has had; None for the head.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        super().__init__()
        self._folder = folder
        self._name = name
        self._boxes: dict[str, _Box] = {}
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._forgotten: set[str] = set()
        if name is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._forgotten.update(entry.name for entry in folder.iterdir())  # of heads before this one
        else:
            self._boxes[HEAD] = self._new(_Box(folder / name, "agent", "head"))
            self._note_life(HEAD)
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._work, name="trainyard mailbox", daemon=True)
        self._thread.start()

    @staticmethod
    def _new(box: _Box) -> _Box:
        """Create the folders of an agent; its name appears last."""
        making = box.folder.with_name(f".{box.folder.name}")
        for each in (making, making / "to_head", making / "to_agent"):
            each.mkdir(mode=0o700, exist_ok=True)
        making.rename(box.folder)
        return box

    def send(self, peer: str, message: list[Any], payload: bytes = b"") -> None:
        content = packed(message, payload)
        with self._guard:
            box = self._boxes.get(peer if self._name is None else HEAD)
            if box is not None and not box.ending:
                box.session.put(content)
        self._news.set()

    def forget(self, peer: str) -> None:
        with self._guard:
            if peer in self._boxes:
                self._boxes[peer].ending = True
        self._heard.pop(peer, None)

    def _stop(self, flush: float) -> None:
        until = time.monotonic() + flush
        while time.monotonic() < until and self._thread.is_alive():
            with self._guard:
                if not any(box.session.waiting for box in self._boxes.values()):
                    break
            time.sleep(0.005)
        self._ended.set()
        self._news.set()
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause, beat_at = _SHORTEST, 0.0
        while not self._ended.is_set():
            moved = False
            beats = time.monotonic() >= beat_at
            if beats:
                beat_at = time.monotonic() + BEAT
            with suppress(OSError):
                self._find_agents()
            with self._guard:
                boxes = list(self._boxes.items())
            for peer, box in boxes:
                with suppress(OSError):  # the directory cannot be reached: at the next look
                    moved = self._write(box) or moved
                    moved = self._read(peer, box) or moved
                    if beats:
                        self._beat(peer, box)
                if box.ending and not box.session.waiting:
                    with self._guard:
                        self._forgotten.add(peer)
                        del self._boxes[peer]
            pause = _SHORTEST if moved else min(_LONGEST, pause * 1.5)
            self._news.wait(pause)
            self._news.clear()

    def _find_agents(self) -> None:
        if self._name is not None:
            return
        for name in os.listdir(self._folder):  # noqa: PTH208
            if name not in self._boxes and name not in self._forgotten and not name.startswith("."):
                with self._guard:
                    self._boxes[name] = _Box(self._folder / name, "head", "agent")
                self._note_life(name)

    def _write(self, box: _Box) -> bool:
        wrote = False
        while True:
            with self._guard:
                item = box.session.waiting[0] if box.session.waiting else None
            if item is None:
                return wrote
            path = box.outgoing / _file(item[0])
            writing = path.with_name(f".{path.name}")
            writing.write_bytes(item[1])
            writing.rename(path)
            with self._guard:
                box.session.acknowledged(item[0])
            wrote = True

    def _read(self, peer: str, box: _Box) -> bool:
        read = False
        for number in _numbers(box.incoming):
            path = box.incoming / _file(number)
            if number == box.session.received + 1:
                content = path.read_bytes()
                box.session.take(number)
                self._note_life(peer)
                message, payload = unpacked(content)
                self._arrived(Received(peer, message, payload))
                read = True
            if number <= box.session.received:
                path.unlink(missing_ok=True)
        return read

    def _beat(self, peer: str, box: _Box) -> None:
        box.beat += 1
        writing = box.folder / f".{box.ours}"
        writing.write_text(str(box.beat))
        writing.rename(box.folder / box.ours)
        with suppress(FileNotFoundError):
            seen = (box.folder / box.theirs).read_bytes()
            if seen != box.seen:
                box.seen = seen
                self._note_life(peer)


def _file(number: int) -> str:
    return f"{number:012d}"


def _numbers(folder: Path) -> Iterator[int]:
    return iter(sorted(int(name) for name in os.listdir(folder) if name.isdecimal()))  # noqa: PTH208
