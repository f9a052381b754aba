"""Terminal: the log handler beside a progress bar, and errors as paragraphs."""

from __future__ import annotations

import logging
import shutil
import sys
import textwrap
from typing import TextIO

from trainyard.errors import TrainyardError

# Whether a progress bar is drawn. Log records that it duplicates then go to the log file only.
live = False


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stdout`, so that lines appear above a progress bar."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore a broken pipe (`train.py … | head`)."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)

    def emit(self, record: logging.LogRecord) -> None:
        if not (live and getattr(record, "of_progress", False)):
            self.stream = sys.stdout
            super().emit(record)


def tell(error: TrainyardError) -> int:
    """Print an error as one paragraph to stderr, and return the exit status."""
    width = shutil.get_terminal_size().columns
    for line in str(error).splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        wrapped = textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        print(wrapped, file=sys.stderr)
    return error.status
