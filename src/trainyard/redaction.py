"""Credentials: finding them in a config, and removing them from texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
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
    "For MLflow, set the environment variables MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD "
    "or MLFLOW_TRACKING_TOKEN. For other secrets, refer to an environment variable of your own: ${oc.env:NAME}."
)


def redact(text: str) -> str:
    """Return the text with `***` for each password, token and key in a URI; repeated calls do not change it.

    In the part of a URI before `@`, a name before a password is kept: `http://bob:***@host`.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(_without_password, text))


def _without_password(match: re.Match[str]) -> str:
    name, colon, _ = match[0].partition(":")
    return f"{name}:{MASK}@" if colon else f"{MASK}@"


def escaped(uri: str) -> str:
    """Return a URI with `@` and `/` in its password escaped, which clients would interpret as part of the host or the
    path."""

    def user(match: re.Match[str]) -> str:
        return ":".join(quote(part, safe="%") for part in match[0][:-1].split(":", 1)) + "@"

    return _USER.sub(user, uri)


def redacted(value: T, key: str = "") -> T:
    """Return a tree of mappings and lists, with each text in it redacted, and each value whose key names a credential.

    Args:
        value: any value; anything other than a mapping, a list or a string is returned unchanged.
        key: the key of the value.
    """
    if isinstance(value, Mapping):
        return {name: redacted(entry, str(name)) for name, entry in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(redacted(entry, key) for entry in value)
    if isinstance(value, str):
        return MASK if _names_credential(key, value) else redact(value)  # type: ignore[return-value]
    return value


def credentials(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key of each string in a config that contains a credential, and the redacted string."""
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
    """Check that no override contains a credential, because Hydra writes overrides to files before a run begins.

    Raises:
        ConfigError: an override contains a credential.
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
        shown: the redacted value.
    """
    return ConfigError(
        key, shown, "a value without a password, token or key, because the value is written to files", hint=PLACE
    )


def _names_credential(key: str, value: str) -> bool:
    return bool(value) and value != MASK and _is_of_credential(key)


@lru_cache(maxsize=4096)  # the configs of a sweep have the same keys
def _is_of_credential(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


def _shown(value: str, key: str) -> str | None:
    """Return the redacted value if it contains a credential, otherwise None; an interpolation contains no
    credential."""
    written = _INTERPOLATION.sub(MASK, value)
    shown = redacted(written, key)
    return None if shown == written else shown
