"""Frames on a connection: both ends prove that they know the token, then exchange messages with authentication codes.

Nothing is decoded before both ends have proved that they know the token, and no message is unpickled here: a message is
JSON with attached bytes. As in `multiprocessing.connection`, the proof is an answer to a random challenge; unlike
there, every frame after it is authenticated too (HMAC-SHA256 of a key of the connection, the direction, the frame's
number and all its content), so that nobody between the ends can insert, repeat or change frames. They can, however,
read them.

    head:   MAGIC, challenge                                32 bytes at random
    agent:  MAGIC, challenge, proof                         HMAC(token, "agent", both challenges)
    head:   proof                                           HMAC(token, "head", both challenges); zeros if it refuses
    both:   number, acknowledged, sizes, JSON, payload, code
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import struct
from typing import Any

MAGIC = b"trainyard agent1"
_CHALLENGE = 32
_CODE = 32
_HEADER = struct.Struct(">QQIQ")  # number, acknowledged, bytes of JSON, bytes of payload
_LONGEST = 1 << 24  # bytes of JSON
_LARGEST = 1 << 36  # bytes of a payload


class RefusedError(Exception):
    """The other end does not know the token, or is not Trainyard."""


class Frames:
    """Authenticated frames over a connection.

    Args:
        reader, writer: the connection.
        key: the connection's key.
        head: whether this end is the head.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, head: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._key = key
        self._out, self._in = (b"head", b"agent") if head else (b"agent", b"head")
        self._written = 0
        self._read = 0

    async def write(self, number: int, acknowledged: int, content: bytes) -> None:
        """Write a frame.

        Args:
            number: the message's number; 0 for none.
            acknowledged: the number of the last message that has arrived.
            content: the result of `packed`; empty if there is none.
        """
        size = int.from_bytes(content[:4], "big")
        header = _HEADER.pack(number, acknowledged, size, max(0, len(content) - 4 - size))
        body = content[4:]
        self._written += 1
        code = self._code(self._out, self._written, header, body)
        self._writer.write(b"".join((header, body, code)))  # each write may be a call of the system
        await self._writer.drain()

    async def read(self) -> tuple[int, int, bytes]:
        """Read a frame: the message's number, what is acknowledged, and the content.

        Raises:
            RefusedError: the frame is not from the other end.
            asyncio.IncompleteReadError: the connection has ended.
        """
        header = await self._reader.readexactly(_HEADER.size)
        number, acknowledged, size, more = _HEADER.unpack(header)
        if size > _LONGEST or more > _LARGEST:
            raise RefusedError("a frame is too long")
        body = await self._reader.readexactly(size + more)
        code = await self._reader.readexactly(_CODE)
        self._read += 1
        if not hmac.compare_digest(code, self._code(self._in, self._read, header, body)):
            raise RefusedError("a frame was modified in transit")
        return number, acknowledged, size.to_bytes(4, "big") + body

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    def _code(self, direction: bytes, number: int, header: bytes, body: bytes) -> bytes:
        code = hmac.new(self._key, direction + number.to_bytes(8, "big"), hashlib.sha256)
        code.update(header)
        code.update(body)
        return code.digest()


async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes) -> Frames:
    """Verify that a connected agent knows the token, then prove the same to the agent.

    Raises:
        RefusedError: it does not know the token, or is not an agent.
    """
    mine = secrets.token_bytes(_CHALLENGE)
    writer.write(MAGIC + mine)
    await writer.drain()
    magic, theirs, proof = await _read(reader, len(MAGIC), _CHALLENGE, _CODE)
    if magic != MAGIC:
        raise RefusedError("the peer is not an agent, or runs an incompatible version of Trainyard")
    if not hmac.compare_digest(proof, _proof(token, b"agent", mine, theirs)):
        writer.write(bytes(_CODE))
        await writer.drain()
        raise RefusedError("the agent has a different token")
    writer.write(_proof(token, b"head", mine, theirs))
    await writer.drain()
    return Frames(reader, writer, _proof(token, b"key", mine, theirs), head=True)


async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes) -> Frames:
    """Prove to a head that this agent knows the token, and verify that the head knows it.

    Raises:
        RefusedError: it does not know the token, or is not a head.
    """
    magic, theirs = await _read(reader, len(MAGIC), _CHALLENGE)
    if magic != MAGIC:
        raise RefusedError("the peer is not the head of a sweep, or runs an incompatible version of Trainyard")
    mine = secrets.token_bytes(_CHALLENGE)
    writer.write(MAGIC + mine + _proof(token, b"agent", theirs, mine))
    await writer.drain()
    (proof,) = await _read(reader, _CODE)
    if not hmac.compare_digest(proof, _proof(token, b"head", theirs, mine)):
        raise RefusedError("the token does not match the token of the head")
    return Frames(reader, writer, _proof(token, b"key", theirs, mine), head=False)


def packed(message: list[Any], payload: bytes) -> bytes:
    """Return a message as bytes: the length of its JSON, the JSON, the payload."""
    text = json.dumps(message).encode()
    if len(text) > _LONGEST:
        raise ValueError(f"a message of {len(text)} bytes")
    return len(text).to_bytes(4, "big") + text + payload


def unpacked(content: bytes) -> tuple[list[Any], bytes]:
    """Return the message and the payload from a result of `packed`."""
    end = 4 + int.from_bytes(content[:4], "big")
    message: list[Any] = json.loads(content[4:end])
    return message, content[end:]


async def _read(reader: asyncio.StreamReader, *sizes: int) -> list[bytes]:
    content = await reader.readexactly(sum(sizes))
    found = []
    for size in sizes:
        found.append(content[:size])
        content = content[size:]
    return found


def _proof(token: bytes, what: bytes, head: bytes, agent: bytes) -> bytes:
    return hmac.new(token, what + head + agent, hashlib.sha256).digest()
