"""Credentials: finding them in a config, and removing them from texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache, reduce
from typing import Any, TypeVar
from urllib.parse import quote

from trainyard.errors import ConfigError

MASK = "***"
T = TypeVar("T")

# From the `//` of a URI to the last `@` before a blank or a quote, where what precedes the first `/` has an `@`, or a
# `:` that begins no port: a password may hold both characters.
_USER = re.compile(r"""(?<=://)(?=[^\s/?#"'@]*(?:@|:(?!\d+(?:[/?#\s"',\])}]|$))))[^\s"']*@""")
_SECRETS = r"passwords?|passwd|passphrase|pwd|secrets?|(?:api|access|private|secret)[_-]?keys?"
# What a token with such a name opens. `pad_token`, `max_tokens` and others of a tokenizer are none.
_TOKEN = (
    r"(?:access|api|auth|bearer|bot|comet|csrf|deploy|github|gitlab|hf|hub|huggingface|jwt|neptune|ngc|npm|oauth|"
    r"personal|pypi|refresh|sas|secret|security|session|slack|telegram|wandb)[_-]?token"
)
_NAMES = rf"pass|{_SECRETS}|credentials?|auth|token|{_TOKEN}|signature|sig"
_QUERY = re.compile(rf"""([?&](?:[\w.-]*[_-])?(?:{_NAMES})=)([^&#\s"']+)""", re.IGNORECASE)
# The last part of a key below which all texts are credentials.
_ABOVE = re.compile(rf"(?:.*[_-])?(?:{_SECRETS}|{_TOKEN})", re.IGNORECASE)
# Or whose own text is one. A mapping below it has other settings, too: `auth: {user: me, password: …}`.
_KEY = re.compile(rf"{_ABOVE.pattern}|(?:.*[_-])?(?:auth|authorization|credentials?)|token", re.IGNORECASE)
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
_OVERRIDE = re.compile(r"[+~]*([^=\s]+?)(?:@[^=]*)?=(.*)", re.DOTALL)
PLACE = (
    "For MLflow, set the environment variables MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD "
    "or MLFLOW_TRACKING_TOKEN. For other secrets, refer to an environment variable of your own: '${oc.env:NAME}'."
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
        key: the key of the value, or the key above it that names a credential.
    """
    if isinstance(value, Mapping):
        entries = value.items()
        return {name: redacted(entry, _telling(key, str(name))) for name, entry in entries}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(redacted(entry, key) for entry in value)
    if isinstance(value, str):
        return MASK if _names_credential(key, value) else redact(value)  # type: ignore[return-value]
    return value


def credentials(value: Any, place: str = "", key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key of each string in a config that contains a credential, and the redacted string.

    Args:
        value: the config.
        place: its dotted key.
        key: as in `redacted`.
    """
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from credentials(entry, f"{place}.{name}" if place else str(name), _telling(key, str(name)))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from credentials(entry, f"{place}.{index}", key)
    elif isinstance(value, str):
        shown = _shown(value, key)
        if shown is not None:
            yield place, shown


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
        shown = _shown(value.strip().strip("'\""), reduce(_telling, re.split(r"[./]", key)))
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


def _telling(above: str, key: str) -> str:
    """Return which of two keys, of which one is above the other, tells whether a value is a credential."""
    return above if _is_above_credentials(above) else key


@lru_cache(maxsize=4096)  # the configs of a sweep have the same keys
def _is_above_credentials(key: str) -> bool:
    return _ABOVE.fullmatch(key) is not None


def _names_credential(key: str, value: str) -> bool:
    return bool(value) and value != MASK and _is_of_credential(key)


@lru_cache(maxsize=4096)
def _is_of_credential(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


def _shown(value: str, key: str) -> str | None:
    """Return the redacted value if it contains a credential, otherwise None; an interpolation contains no
    credential."""
    written = _INTERPOLATION.sub(MASK, value)
    shown = redacted(written, key)
    return None if shown == written else shown
