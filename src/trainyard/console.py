"""Terminal and notebook: a log handler that works with a progress bar, colors, and errors as paragraphs."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TextIO

from trainyard.errors import TrainyardError

# Whether a progress bar is drawn. Log records that it duplicates then go to the log file only.
live = False

BOLD, RED, GREEN, YELLOW = "1", "31", "32", "33"


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stdout`, so that lines appear above a progress bar.

    On a terminal, warnings are yellow, errors are red, and records with a true attribute `best` are green.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore a broken pipe (`train.py … | head`)."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            return coloured(text, RED if record.levelno >= logging.ERROR else YELLOW, self.stream)
        return coloured(text, GREEN, self.stream) if getattr(record, "best", False) else text

    def emit(self, record: logging.LogRecord) -> None:
        if not (live and getattr(record, "of_progress", False)):
            self.stream = sys.stdout
            super().emit(record)


_interactive = ConsoleHandler()


def show_lines() -> None:
    """Show the lines of the log in a notebook or another interactive session, if no logging was set up there.

    Elsewhere, logging is set up by the command or by the program that uses this library.
    """
    log = logging.getLogger("trainyard")
    log.removeHandler(_interactive)  # handlers may have been set up since the last time
    if hasattr(sys, "ps1") and not log.hasHandlers():
        log.addHandler(_interactive)
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)


def escape_unencodable() -> None:
    """Let this process print characters that the encoding of the terminal or file does not have, as escapes.

    Such characters are in names of files that are not UTF-8, and in all texts if the encoding is ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


class _Output(TextIOWrapper):
    """Output of this process. When its reader has ended, this and all later output is discarded."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        super().flush()


def outlast_reader() -> None:
    """Let this process continue when the program that reads its output has ended (`train.py -m … | head`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is TextIOWrapper and stream is getattr(sys, f"__{name}__") and not stream.isatty():
            stream.flush()
            output = _Output(
                BufferedWriter(FileIO(stream.fileno(), "wb", closefd=False)),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, output)


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Return the text in escape codes if the stream is a terminal that supports colors.

    The variable NO_COLOR (https://no-color.org) turns them off.

    Args:
        text: the text to write.
        colour: parameters of ANSI's "select graphic rendition", such as `GREEN`.
        stream: the stream to which it is written.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def tell(error: TrainyardError) -> int:
    """Print an error as one paragraph to stderr, and return the exit status."""
    width = shutil.get_terminal_size().columns
    for line in str(error).splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        wrapped = textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        print(wrapped, file=sys.stderr)
    return error.status
