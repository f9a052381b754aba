"""Links over TCP: agents dial the head."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from trainyard.sweep.executor.transport.base import BEAT, HEAD, Received, Transport
from trainyard.sweep.executor.transport.frames import Frames, RefusedError, accepted, connected, packed, unpacked
from trainyard.sweep.executor.transport.session import Session

HANDSHAKE = 10.0
"""Seconds within which a connection must prove that it knows the token."""
SILENT = 15.0
"""Seconds of silence after which a connection is given up and an agent reconnects."""
_ACKNOWLEDGES = 0.02
"""Seconds within which a message is acknowledged: with the next message, or separately."""
_PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0)  # seconds between two attempts to connect


@dataclass
class _Link:
    """Link to a peer: its session outlives connections."""

    session: Session = field(default_factory=Session)
    frames: Frames | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    acknowledges: asyncio.TimerHandle | None = None
    ending: bool = False


class _Tcp(Transport):
    """Base of both ends: an event loop in a thread, and the exchange of frames on a connection."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._links: dict[str, _Link] = {}
        self._outgoing: deque[tuple[str, bytes]] = deque()
        self._is_woken = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="trainyard transport", daemon=True)
        self._thread.start()

    def send(self, peer: str, message: list[Any], payload: bytes = b"") -> None:
        self._outgoing.append((peer, packed(message, payload)))
        if not self._is_woken:  # one wake-up for all that is sent until the thread has its turn
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._put_all)

    def forget(self, peer: str) -> None:
        self._loop.call_soon_threadsafe(self._end_link, peer)

    def _stop(self, flush: float) -> None:
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._shut(flush), self._loop).result(flush + 5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut(self, flush: float) -> None:
        until = time.monotonic() + flush
        while any(it.frames and it.session.waiting for it in self._links.values()) and time.monotonic() < until:
            await asyncio.sleep(0.005)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=0.1)

    def _put_all(self) -> None:
        self._is_woken = False  # before the last look at what is sent
        while self._outgoing:
            peer, content = self._outgoing.popleft()
            link = self._links.get(peer)
            if link is not None and not link.ending:
                link.session.put(content)
                link.news.set()

    def _end_link(self, peer: str) -> None:
        link = self._links.get(peer)
        if link is not None:
            link.ending = True
            link.news.set()
            if link.frames is None:
                self._links.pop(peer, None)
        self._heard.pop(peer, None)

    async def _exchange(self, peer: str, link: _Link, frames: Frames) -> None:
        """Exchange frames until the connection ends."""
        before, link.frames = link.frames, frames
        if before is not None:
            before.close()
        writing = self._loop.create_task(self._write(link, frames))
        try:
            async with asyncio.timeout(SILENT) as limit:
                while True:
                    number, acknowledged, content = await frames.read()
                    limit.reschedule(self._loop.time() + SILENT)
                    self._note_life(peer)
                    link.session.acknowledged(acknowledged)
                    if link.ending:
                        link.news.set()  # it may have been the last one
                    if number and link.session.take(number):
                        message, payload = unpacked(content)
                        self._arrived(Received(peer, message, payload))
                        if link.acknowledges is None:
                            link.acknowledges = self._loop.call_later(_ACKNOWLEDGES, self._acknowledge, link)
        finally:
            writing.cancel()
            frames.close()
            if link.frames is frames:
                link.frames = None

    def _acknowledge(self, link: _Link) -> None:
        link.acknowledges = None
        link.news.set()

    async def _write(self, link: _Link, frames: Frames) -> None:
        session, told = link.session, -1
        while link.frames is frames:
            link.news.clear()
            while link.frames is frames and (item := session.next()) is not None:
                await frames.write(item[0], session.received, item[1])
                told = session.received
            if told != session.received:
                await frames.write(0, session.received, b"")
                told = session.received
            if link.ending and not session.waiting:
                frames.close()
                return
            try:
                async with asyncio.timeout(BEAT):
                    await link.news.wait()
            except TimeoutError:
                await frames.write(0, session.received, b"")


class TcpHead(_Tcp):
    """The head's end.

    Args:
        host: the address on which to listen; other addresses of this machine do not respond.
        token: the token that agents must know.
        port: the port; 0 for a free one.

    Attributes:
        port: the port on which it listens.
        refused: why connections were refused, each reason once.

    Raises:
        OSError: it cannot listen on this address.
    """

    def __init__(self, host: str, token: bytes, port: int = 0) -> None:
        super().__init__()
        self._token = token
        self.refused: list[str] = []
        try:
            listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, host, port), self._loop)
            self._server = listening.result(30)
        except BaseException:
            self.close(flush=0)
            raise
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _shut(self, flush: float) -> None:
        if hasattr(self, "_server"):
            self._server.close()
        await super()._shut(flush)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.CancelledError):
            pass  # the agent connects again
        except RefusedError as error:
            if str(error) not in self.refused:
                self.refused.append(str(error))
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HANDSHAKE):
            frames = await accepted(reader, writer, self._token)
            _, received, content = await frames.read()
            (peer,), _ = unpacked(content)
            link = self._links.get(peer)
            if link is None and received == 0:
                link = self._links[peer] = _Link()
            if link is None or link.ending:
                await frames.write(0, 0, packed(["unknown"], b""))
                return
            await frames.write(0, link.session.received, packed(["known"], b""))
        link.session.connected(received)
        self._note_life(peer)
        await self._exchange(peer, link, frames)


class TcpAgent(_Tcp):
    """An agent's end: it connects to the head, and reconnects when a connection breaks.

    `receive` raises TransportError when the head refuses it because of another token, or because the head no longer
    knows it.

    Args:
        name: the agent's name, which no other agent has had.
        host, port: the address of the head.
        token: the token of the head.
    """

    def __init__(self, name: str, host: str, port: int, token: bytes) -> None:
        super().__init__()
        self._name = name
        self._address = host, port
        self._token = token
        self._note_life(HEAD)
        self._loop.call_soon_threadsafe(self._dial)

    def _dial(self) -> None:
        self._links[HEAD] = _Link()
        self._dialing = self._loop.create_task(self._stay_connected(self._links[HEAD]))

    def send(self, peer: str, message: list[Any], payload: bytes = b"") -> None:
        super().send(HEAD, message, payload)

    async def _stay_connected(self, link: _Link) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(HANDSHAKE):
                    reader, writer = await asyncio.open_connection(*self._address)
                try:
                    frames = await self._introduced(reader, writer, link)
                    failures = 0
                    await self._exchange(HEAD, link, frames)
                finally:
                    writer.close()
            except RefusedError as error:
                self._fail(str(error))
                return
            except (OSError, EOFError, TimeoutError, ValueError):
                pass
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1

    async def _introduced(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link) -> Frames:
        async with asyncio.timeout(HANDSHAKE):
            frames = await connected(reader, writer, self._token)
            await frames.write(0, link.session.received, packed([self._name], b""))
            _, received, content = await frames.read()
        if unpacked(content)[0] != ["known"]:
            raise RefusedError("the head does not know this agent")
        link.session.connected(received)
        self._note_life(HEAD)
        return frames
