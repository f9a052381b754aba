"""Transports: messages arrive in order, each once, over connections that break and directories that come and go."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

from trainyard.sweep.executor.transport import Transport, TransportError
from trainyard.sweep.executor.transport.base import HEAD
from trainyard.sweep.executor.transport.frames import packed, unpacked
from trainyard.sweep.executor.transport.mailbox import Mailbox
from trainyard.sweep.executor.transport.session import Session
from trainyard.sweep.executor.transport.tcp import TcpAgent, TcpHead

TOKEN = b"a token"
Disturb = Callable[[], object]


class Cut:
    """Passes connections on, and cuts all of them when it is told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._server.accept()
                there = socket.create_connection(("127.0.0.1", self._port))
                self._open += [here, there]
                for source, target in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(100):
                target.sendall(content)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __call__(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self()
        for each in self._open:
            each.close()


@contextmanager
def over_tcp() -> Iterator[tuple[Transport, Callable[[str], Transport], Disturb]]:
    head = TcpHead("127.0.0.1", TOKEN)
    cut = Cut(head.port)
    with head:
        yield head, lambda name: TcpAgent(name, "127.0.0.1", cut.port, TOKEN), cut
        cut.close()


@contextmanager
def over_files() -> Iterator[tuple[Transport, Callable[[str], Transport], Disturb]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "mail"

        def move_away() -> None:
            away = folder.with_name("away")
            os.rename(folder, away)  # noqa: PTH104
            time.sleep(0.03)
            os.rename(away, folder)  # noqa: PTH104

        with Mailbox(folder) as head:
            yield head, lambda name: Mailbox(folder, name), move_away


KINDS = pytest.mark.parametrize("kind", [over_tcp, over_files])


def all_of(transport: Transport, count: int) -> Any:
    found: list[Any] = []
    until = time.monotonic() + 60
    while len(found) < count and time.monotonic() < until:
        found += transport.receive(1.0)
    return found


@KINDS
@settings(deadline=None, max_examples=12)
@given(
    script=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["head", "one", "two"]), st.integers(1, 5), st.integers(0, 3000)),
            st.just("disturb"),
        ),
        max_size=12,
    )
)
def test_each_message_arrives_once_and_in_order(kind: Any, script: Any) -> None:
    sent: dict[str, list[Any]] = {"head": [], "one": [], "two": []}
    with kind() as (head, dial, disturb), dial("one") as one, dial("two") as two:
        for name, each in (("one", one), ("two", two)):
            each.send(HEAD, ["hello", name])
            sent[name].append((["hello", name], b""))
        arrived = all_of(head, 2)  # the head knows its peers once they have spoken
        for number, step in enumerate(script):
            if step == "disturb":
                disturb()
                continue
            who, count, size = step
            for index in range(count):
                message, payload = [number, index, "\x00ü"], os.urandom(size)
                sent[who].append((message, payload))
                if who == "head":
                    head.send("one", message, payload)
                    head.send("two", message, payload)
                else:
                    {"one": one, "two": two}[who].send(HEAD, message, payload)
        arrived += all_of(head, len(sent["one"]) + len(sent["two"]) - 2)
        for name in ("one", "two"):
            assert [(it.message, it.payload) for it in arrived if it.peer == name] == sent[name]
        for each in (one, two):
            assert [(it.message, it.payload) for it in all_of(each, len(sent["head"]))] == sent["head"]
        for each in (head, one, two):
            assert each.receive(0) == []


@KINDS
def test_what_was_sent_before_an_end_closes_still_arrives(kind: Any) -> None:
    with kind() as (head, dial, _), dial("one") as one:
        one.send(HEAD, ["hello"])
        all_of(head, 1)
        head.send("one", ["close"], b"x" * 100_000)
        head.forget("one")
        assert [it.message for it in all_of(one, 1)] == [["close"]]
        head.send("one", ["not sent any more"])
        with suppress(TransportError):
            assert one.receive(0.2) == []


@KINDS
def test_silence_begins_when_a_peer_ends(kind: Any) -> None:
    with kind() as (head, dial, _):
        assert head.silence("one") == 0
        with dial("one") as one:
            one.send(HEAD, ["hello"])
            all_of(head, 1)
        time.sleep(0.05)
        assert head.silence("one") >= 0.05


# The token


def test_a_wrong_token_is_refused_at_both_ends() -> None:
    with TcpHead("127.0.0.1", TOKEN) as head, TcpAgent("one", "127.0.0.1", head.port, b"another") as agent:
        agent.send(HEAD, ["hello"])
        with pytest.raises(TransportError, match="the token does not match the token of the head"):
            agent.receive(30)
        assert head.receive(0) == []
        assert until(lambda: head.refused) == ["the agent has a different token"]


def test_a_head_without_the_token_is_refused() -> None:
    """Who only repeats what an agent says proves nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"trainyard agent1" + b"c" * 32)
                proof = connection.recv(16 + 32 + 32, socket.MSG_WAITALL)[-32:]
                connection.sendall(proof)

        threading.Thread(target=answer, daemon=True).start()
        with TcpAgent("one", "127.0.0.1", port, TOKEN) as agent, pytest.raises(TransportError, match="the token"):
            agent.receive(30)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" * 20, b"", b"trainyard agent1" + b"x" * 64])
def test_what_is_no_agent_gets_nothing_and_changes_nothing(said: bytes) -> None:
    with TcpHead("127.0.0.1", TOKEN) as head:
        with socket.create_connection(("127.0.0.1", head.port)) as stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            got = b""
            with suppress(ConnectionError):
                while content := stranger.recv(1000):
                    got += content
        assert got[:16] == b"trainyard agent1"
        assert len(got) <= 16 + 32 + 32
        assert not any(got[48:])  # no proof, from which a token could be guessed
        with TcpAgent("one", "127.0.0.1", head.port, TOKEN) as agent:
            agent.send(HEAD, ["hello"])
            assert [it.peer for it in all_of(head, 1)] == ["one"]


def test_a_frame_that_was_changed_on_its_way_is_not_taken() -> None:
    """Between the ends sits somebody who turns one bit."""
    with TcpHead("127.0.0.1", TOKEN) as head, socket.create_server(("127.0.0.1", 0)) as server:
        turned = threading.Event()

        def pass_on(source: socket.socket, target: socket.socket) -> None:
            with suppress(OSError):
                while content := source.recv(1 << 16):
                    at = content.find(b"secret")
                    if at >= 0 and not turned.is_set():
                        turned.set()
                        content = content[:at] + b"Secret" + content[at + 6 :]
                    target.sendall(content)
            for each in (source, target):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    here, _ = server.accept()
                    there = socket.create_connection(("127.0.0.1", head.port))
                    for pair in ((here, there), (there, here)):
                        threading.Thread(target=pass_on, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        with TcpAgent("one", "127.0.0.1", server.getsockname()[1], TOKEN) as agent:
            agent.send(HEAD, ["secret"])
            assert [it.message for it in all_of(head, 1)] == [["secret"]]
            assert turned.is_set()
            assert head.refused == ["a frame was modified in transit"]


def test_a_head_that_was_started_again_does_not_know_the_agents_of_the_one_before() -> None:
    with TcpHead("127.0.0.1", TOKEN) as head, TcpAgent("one", "127.0.0.1", head.port, TOKEN) as agent:
        agent.send(HEAD, ["hello"])
        all_of(head, 1)
        head.send("one", ["welcome"])
        all_of(agent, 1)
        head.close()
        with TcpHead("127.0.0.1", TOKEN, head.port), pytest.raises(TransportError, match="does not know this agent"):
            agent.receive(30)


def test_a_mailbox_is_for_its_owner_only(tmp_path: Path) -> None:
    with Mailbox(tmp_path / "mail"), Mailbox(tmp_path / "mail", "one"):
        for folder in (tmp_path / "mail", tmp_path / "mail" / "one"):
            assert folder.stat().st_mode & 0o77 == 0


# Sessions


@given(st.lists(st.sampled_from(["put", "send", "ack", "break"]), max_size=60))
def test_a_session_loses_and_repeats_nothing(steps: Sequence[str]) -> None:
    here, there = Session(), Session()
    number, arrived = 0, []
    line: list[tuple[int, bytes]] = []

    def deliver() -> None:
        for each, content in line:
            if there.take(each):
                arrived.append(content)
        line.clear()

    for step in [*steps, "break", "send", "ack"]:
        if step == "put":
            here.put(b"%d" % number)
            number += 1
        elif step == "send":
            while (item := here.next()) is not None:
                line.append(item)
            deliver()
        elif step == "ack":
            here.acknowledged(there.received)
        else:
            if (item := here.next()) is not None:
                line.append(item)
            line.clear()  # what was on its way is lost
            here.connected(there.received)
    assert arrived == [b"%d" % each for each in range(number)]
    assert not here.waiting


@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(st.integers(), st.text(), st.none(), st.booleans())), st.binary())
def test_packing(message: Any, payload: bytes) -> None:
    assert unpacked(packed(message, payload)) == (message, payload)
