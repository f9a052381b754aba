"""Colors on terminals alone, lines of the log in interactive sessions, and a reader of the output that ends."""

import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainyard import console
from trainyard.console import GREEN, RED, YELLOW, ConsoleHandler, coloured, show_lines


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stream that writes to a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, its = pty.openpty()
    with os.fdopen(its, "w") as stream:
        yield stream
    os.close(ours)


@pytest.fixture
def own_log(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The log of the library, without the handlers of this process."""
    log = logging.getLogger("trainyard")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "level", logging.NOTSET)
    return log


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", b"caf\\udce9 \xe2\x9c\x97"), ("ascii", b"caf\\udce9 \\u2717")],
)
def test_characters_that_the_encoding_does_not_have(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    console.escape_unencodable()
    print("caf\udce9 ✗", end="", flush=True)
    assert stream.buffer.getvalue() == shown


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_process_outlasts_the_reader_of_its_output(descriptor: int, tmp_path: Path) -> None:
    name = ["stdout", "stderr"][descriptor - 1]
    code = (
        "import os, sys; from trainyard.console import outlast_reader; outlast_reader(); os.read(0, 1)\n"
        f"for _ in range(3): print('line ' * 9999, file=sys.{name}, flush=True)\n"
        f"print('end', end='', file=sys.{name}); open('after', 'w').close()"
    )
    read, write = os.pipe()
    streams: dict[str, Any] = {name: write}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, **streams) as process:
        os.close(write)
        os.close(read)
        process.communicate(b"\n")
    assert (process.returncode, (tmp_path / "after").exists()) == (0, True)


def test_colours_are_for_terminals(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert coloured("text", RED, terminal) == "\x1b[31mtext\x1b[0m"
    assert coloured("text", RED, io.StringIO()) == "text"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("text", RED, terminal) == "text"
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert coloured("text", RED, terminal) == "text"


@pytest.mark.parametrize(
    ("level", "best", "colour"),
    [(logging.INFO, False, None), (logging.INFO, True, GREEN), (30, False, YELLOW), (40, False, RED)],
)
def test_lines_have_the_colour_of_what_they_say(terminal: Any, level: int, best: bool, colour: str | None) -> None:
    record = logging.makeLogRecord({"msg": "text", "levelno": level, "best": best})
    handler = ConsoleHandler()
    handler.stream = terminal
    assert handler.format(record) == ("text" if colour is None else coloured("text", colour, terminal))
    handler.stream = io.StringIO()
    assert handler.format(record) == "text"


def test_an_interactive_session_shows_the_log_once(
    own_log: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_log.handlers.clear()  # those of pytest
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    for _ in range(2):
        show_lines()
    own_log.info("a line")
    assert capsys.readouterr().out == "a line\n"


def test_a_log_that_was_set_up_stays_as_it_is(own_log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    own_log.handlers.clear()  # those of pytest
    show_lines()
    assert own_log.handlers == [], "a program that is not interactive sets its log up by itself"

    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    show_lines()
    assert own_log.handlers == [console._interactive]
    own = logging.NullHandler()
    own_log.addHandler(own)
    show_lines()
    assert own_log.handlers == [own]
