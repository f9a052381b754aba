"""Files in `agents/` of the sweep's directory, through which agents find their head.

    token       what both have to know, 32 bytes at random in hexadecimal; mode 600
    head.json   how to reach the head, and its fencing number: each head of a sweep has the next one
    alive/NAME  a number that grows while an agent lives; removed when it ends
    mail/       the mailboxes, where no port is allowed
    meetings/   where the nodes of a job meet that is on several (`trainyard.nodes`)

Clocks of machines may differ: whether a number grows is observed, by the local time that passes meanwhile.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trainyard.errors import ConfigError, TrainyardError
from trainyard.nodes import own_address
from trainyard.sweep.executor.transport import Transport
from trainyard.sweep.executor.transport.mailbox import Mailbox
from trainyard.sweep.executor.transport.tcp import TcpAgent, TcpHead

FOLDER = "agents"
MEETINGS = "meetings"
_HEAD, _TOKEN, _ALIVE, _MAIL = "head.json", "token", "alive", "mail"
ALIVE_EVERY = 2.0
"""Seconds between two heartbeats of an agent in its file."""


@dataclass(frozen=True)
class HeadAddress:
    """How agents reach a head.

    Attributes:
        fence: its number; the later of two heads of a sweep has the higher number.
        kind: the transport.
        host, port: its address over TCP.
    """

    fence: int
    kind: Literal["tcp", "files"]
    host: str = ""
    port: int = 0


def open_head(
    directory: Path, kind: Literal["tcp", "files"], address: str | None, key: str
) -> tuple[Transport, HeadAddress]:
    """Open the head's end of its links, and publish its address.

    Args:
        directory: the sweep's directory.
        kind: the transport.
        address: the address to listen at; None for that of this machine's name.
        key: the setting of the address, for the message.

    Raises:
        ConfigError: this machine has no such address.
    """
    folder = directory / FOLDER
    for each in (folder, folder / _ALIVE):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    fence = _fence(folder) + 1
    transport: Transport
    if kind == "files":
        transport, found = Mailbox(folder / _MAIL), HeadAddress(fence, kind)
    else:
        host = address or own_address()
        try:
            transport = TcpHead(host, _new_token(folder))
        except OSError as error:
            hint = f"{error.strerror or error}. On a shared disk, hydra.launcher.transport=files needs no port."
            accepted = "an address of this machine that the nodes can reach"
            raise ConfigError(key, host, accepted, hint=hint) from error
        found = HeadAddress(fence, kind, host, transport.port)
    _replace(folder / _HEAD, json.dumps(asdict(found)))
    return transport, found


def open_agent(directory: Path, name: str) -> tuple[Transport, HeadAddress]:
    """Open an agent's end.

    Raises:
        TrainyardError: the directory is not visible here, or has no head.
    """
    folder = directory / FOLDER
    try:
        address = read_head(directory)
        token = read_token(directory).encode() if address.kind == "tcp" else b""
    except OSError as error:
        node = socket.gethostname()
        if not directory.is_dir():
            raise TrainyardError(
                f"{node} does not see {directory}: the directory of a sweep (hydra.sweep.dir) must be on a disk that "
                "its head and all nodes share."
            ) from error
        raise TrainyardError(f"{node} cannot read {error.filename}: {error.strerror}.") from error
    if address.kind == "files":
        return Mailbox(folder / _MAIL, name), address
    return TcpAgent(name, address.host, address.port, token), address


def read_head(directory: Path) -> HeadAddress:
    """Return how to reach the head of a sweep.

    Raises:
        OSError: it cannot be read.
    """
    return HeadAddress(**json.loads((directory / FOLDER / _HEAD).read_bytes()))


def read_token(directory: Path) -> str:
    """Return the token that the head of a sweep and its agents share.

    Raises:
        OSError: it cannot be read.
    """
    return (directory / FOLDER / _TOKEN).read_text()


def write_meeting(directory: Path, address: HeadAddress, token: str) -> None:
    """Write the address of a head, for an agent on a machine that does not see the head's directory."""
    for each in (directory / FOLDER, directory / FOLDER / _ALIVE):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace(directory / FOLDER / _HEAD, json.dumps(asdict(address)))
    _replace(directory / FOLDER / _TOKEN, token)


class AliveFile:
    """Sign of life of an agent, for the heads after its own.

    Args:
        directory: the sweep's directory.
        name: the agent's name.
        path: another file than that of an agent.
        every: seconds between two signs.
    """

    def __init__(self, directory: Path, name: str, path: Path | None = None, every: float = ALIVE_EVERY) -> None:
        self._path = path or directory / FOLDER / _ALIVE / name
        self._every = every
        self._mark = secrets.token_hex(4)
        self._count = 0
        self._next = 0.0

    def tick(self) -> None:
        """Show that the agent lives; call it every second or so."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            self._count += 1
            with suppress(OSError):
                _replace(self._path, f"{self._mark} {self._count}")

    def remove(self) -> None:
        """Show that it has ended."""
        with suppress(OSError):
            self._path.unlink()


def left_agents(directory: Path) -> dict[str, str]:
    """Return the agents of earlier heads that have not ended, each with its last heartbeat."""
    found = {}
    with suppress(OSError):
        for path in (directory / FOLDER / _ALIVE).iterdir():
            if not path.name.startswith("."):
                with suppress(OSError):
                    found[path.name] = path.read_text()
    return found


def forget_agent(directory: Path, name: str) -> None:
    """Remove the heartbeat of an agent that is no longer alive."""
    AliveFile(directory, name).remove()


def _fence(folder: Path) -> int:
    try:
        return int(json.loads((folder / _HEAD).read_bytes())["fence"])
    except (OSError, ValueError, KeyError):
        return 0


def _new_token(folder: Path) -> bytes:
    token = secrets.token_hex(32)
    _replace(folder / _TOKEN, token)
    return token.encode()


def _replace(path: Path, content: str) -> None:
    """Write a file that only its owner can read, replacing the previous one."""
    writing = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(writing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(content)
    writing.rename(path)
