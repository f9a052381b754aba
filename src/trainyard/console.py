"""Log handler for the terminal, beside a progress bar."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

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
