"""Text cleaning for MLflow."""

from __future__ import annotations

import functools
import posixpath
import re

from trainyard import errors
from trainyard.redaction import redact

MAX_NAME = 250
MAX_RUN_NAME = 250  # that databases have room for
MAX_PARAM = 6000
MAX_TAG = 8000


@functools.lru_cache(10_000)
def clean_name(name: str) -> str:
    """Return the nearest name that MLflow accepts for a metric, param or tag: a path of letters, digits and `_-. :`."""
    name = re.sub(r"[^/\w.\- :]", "_", name.encode(errors="replace").decode())
    parts = [part for part in posixpath.normpath(name).split("/") if part not in ("", ".", "..")]
    clean = "/".join(parts)
    if clean.startswith(".."):  # MLflow takes it for a path that leads out of a folder
        clean = f"_{clean[1:]}"
    return clean[:MAX_NAME].rstrip("/") or "_"


def clean_text(text: str, limit: int) -> str:
    """Return `text` without characters that databases refuse, truncated to `limit` characters."""
    text = text.replace("\0", "").encode(errors="replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(error: BaseException) -> str:
    """Describe an error in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, redacted."""
    return redact(errors.first_line(error, ""))[:500]
