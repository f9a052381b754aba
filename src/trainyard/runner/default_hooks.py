"""Default hooks: the hooks of a Runner without given hooks."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

import trainyard


def default_hooks() -> dict[str, dict[str, Any]]:
    """Return the configs of `conf/hook/default.yaml` by name, including the hooks of its defaults list."""
    return deepcopy(_read("default"))


@cache
def _read(option: str) -> dict[str, dict[str, Any]]:
    package = Path(trainyard.__file__).parent
    installed, checkout = package / "conf", package.parents[1] / "conf"  # in a wheel; in a clone of the repository
    folder = (installed if installed.is_dir() else checkout) / "hook"
    own = yaml.safe_load((folder / f"{option}.yaml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for entry in own.pop("defaults", ["_self_"]):
        found |= own if entry == "_self_" else _read(entry)
    return found
