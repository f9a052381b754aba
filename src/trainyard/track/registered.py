"""Name and alias under which a model is to be registered."""

from __future__ import annotations

import re

from trainyard.checks import text
from trainyard.errors import ConfigError
from trainyard.track.shipper.sanitize import MAX_RUN_NAME

DEFAULT_ALIAS = "best"
_NONE = "null to register no model"


def registered(given: object) -> tuple[str, str]:
    """Return the name and the alias of `NAME` or `NAME@ALIAS`.

    Raises:
        ConfigError: MLflow does not accept the name or the alias.
    """
    whole = text("register", given, at_most=MAX_RUN_NAME, other=_NONE)
    name, at, alias = whole.partition("@")
    alias = alias if at else DEFAULT_ALIAS
    accepted = f"NAME or NAME@ALIAS (a name without / and :, an alias of letters, digits, - and _), or {_NONE}"
    if not name or re.search(r"[/:]", name) or not re.fullmatch(r"[\w\-]+", alias):
        raise ConfigError("register", given, accepted)
    if re.fullmatch(r"[vV]\d+", alias) or alias.lower() == "latest":
        raise ConfigError("register", given, accepted, hint=f"The alias {alias} is reserved by MLflow.")
    return name, alias
