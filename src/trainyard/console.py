"""Log lines on the terminal, beside a progress bar that may be on it."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

# Whether a progress bar is drawn: lines that it makes needless are then left to the log file.
live = False


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stdout` is at that moment, so that lines appear above a progress bar."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing more where nobody listens any more (`train.py … | head`)."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)

    def emit(self, record: logging.LogRecord) -> None:
        if not (live and getattr(record, "of_progress", False)):
            self.stream = sys.stdout
            super().emit(record)
