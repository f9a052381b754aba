"""Credentials: where they are found in a config, and texts without them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from trainyard.errors import ConfigError

MASK = "***"
T = TypeVar("T")

# From the `//` of a URI to the last `@` before a blank or a quote, where what precedes the first `/` has an `@`, or a
# `:` that begins no port: a password may hold both characters.
_USER = re.compile(r"""(?<=://)(?=[^\s/?#"'@]*(?:@|:(?!\d+(?:[/?#\s"',\])}]|$))))[^\s"']*@""")
_NAMES = (
    r"pass(?:word|wd|phrase)?|pwd|secret|credentials?|token|"
    r"(?:api|access|private|secret)[_-]?key|(?:access|auth|api|bearer|hf|secret)[_-]?token|signature|sig"
)
_QUERY = re.compile(rf"""([?&](?:[\w.-]*[_-])?(?:{_NAMES})=)([^&#\s"']+)""", re.IGNORECASE)
# The last part of a key whose value is a credential. `pad_token` and `max_tokens` are none.
_KEY = re.compile(
    r"(?:.*[_-])?(?:password|passwd|passphrase|secret|credentials?|(?:api|access|private|secret)[_-]?key|"
    r"(?:access|auth|api|bearer|hf|secret)[_-]?token)|token|pwd",
    re.IGNORECASE,
)
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
_OVERRIDE = re.compile(r"[+~]*([^=\s]+?)(?:@[^=]*)?=(.*)", re.DOTALL)
PLACE = (
    "MLflow reads it from the environment: MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, "
    "MLFLOW_TRACKING_TOKEN. For other secrets, use an environment variable: ${oc.env:NAME}."
)


def redact(text: str) -> str:
    """Return the text with `***` in place of each password, token and key in a URI; it may be applied again.

    In the part of a URI before `@`, a name that is followed by a password stays: `http://bob:***@host`.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(_without_password, text))


def _without_password(match: re.Match[str]) -> str:
    name, colon, _ = match[0].partition(":")
    return f"{name}:{MASK}@" if colon else f"{MASK}@"


def escaped(uri: str) -> str:
    """Return a URI with `@` and `/` in its password escaped, which clients take for the host's or the path's."""

    def user(match: re.Match[str]) -> str:
        return ":".join(quote(part, safe="%") for part in match[0][:-1].split(":", 1)) + "@"

    return _USER.sub(user, uri)


def redacted(value: T, key: str = "") -> T:
    """Return a tree of mappings and lists, with each text in it redacted, and each value whose key names a credential.

    Args:
        value: anything; what is neither a mapping, a list nor a text is returned as it is.
        key: the name under which it stands.
    """
    if isinstance(value, Mapping):
        return {name: redacted(entry, str(name)) for name, entry in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(redacted(entry, key) for entry in value)
    if isinstance(value, str):
        return MASK if _names_credential(key, value) else redact(value)  # type: ignore[return-value]
    return value


def credentials(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key of each text in a config that holds a credential, and the text, redacted."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from credentials(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from credentials(entry, f"{key}.{index}")
    elif isinstance(value, str):
        shown = _shown(value, key.rpartition(".")[2])
        if shown is not None:
            yield key, shown


def check_overrides(overrides: list[str]) -> None:
    """Check that no override holds a credential: Hydra writes overrides to files, before a run begins.

    Raises:
        ConfigError: one does.
    """
    for override in overrides:
        match = _OVERRIDE.fullmatch(override)
        if match is None:
            continue
        key, value = match.groups()
        shown = _shown(value.strip().strip("'\""), re.split(r"[./]", key)[-1])
        if shown is not None:
            raise refusal(key, shown)


def refusal(key: str, shown: str) -> ConfigError:
    """Return the error about a credential at a key.

    Args:
        key: its place in the config.
        shown: the value, redacted.
    """
    return ConfigError(
        key, shown, "a value without a password, token or key, because it is written to files", hint=PLACE
    )


def _names_credential(key: str, value: str) -> bool:
    return bool(value) and value != MASK and _KEY.fullmatch(key) is not None


def _shown(value: str, key: str) -> str | None:
    """Return a value redacted if it holds a credential, else None; an interpolation holds none."""
    written = _INTERPOLATION.sub(MASK, value)
    shown = redacted(written, key)
    return None if shown == written else shown
