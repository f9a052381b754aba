"""Differences between Hydra 1.3 and 1.4, and between OmegaConf 2.3 and 2.4.

All other code is the same for both. The other differences, which affect the fast composition of sweeps, are in
`trainyard.sweep.compose`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import hydra.core.utils
import hydra.utils
import hydra.version
from omegaconf import DictConfig, OmegaConf

_whitelist: Callable[..., AbstractContextManager[object]] | None = getattr(hydra.utils, "execution_whitelist", None)
_is_tuple: Callable[[Any], bool] | None = getattr(OmegaConf, "is_tuple", None)

IS_14 = _whitelist is not None

VERSION_BASE: dict[str, Any] = {} if IS_14 else {"version_base": "1.3"}
"""Arguments of `hydra.main` and `hydra.initialize…`. Hydra 1.3 needs this one; Hydra 1.4 warns about it."""


def any_target() -> AbstractContextManager[object]:
    """Let Hydra import any target inside the block, as Hydra 1.3 does.

    The user chooses the classes that a config names, so there is no list of allowed ones. Hydra 1.4 warns if it
    receives neither a list nor this setting.
    """
    if _whitelist is None:
        return nullcontext()
    return _whitelist(hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS)  # type: ignore[attr-defined,unused-ignore]


def instantiate(node: Any, *args: Any) -> Any:
    """Build the object that a node describes, with plain lists and dicts as arguments.

    Raises:
        InstantiationException: as in Hydra. In Hydra 1.3, the error of a target is its cause; Hydra 1.4 raises the
            error of the target. `full_key` returns the key of the node for both.
    """
    with any_target():
        return hydra.utils.instantiate(node, *args, _convert_="all")


def full_key(error: Exception) -> str:
    """Return the key of the node that could not be built, from the root or from the node passed to `instantiate`."""
    lines: list[str] = [*str(error).splitlines(), *getattr(error, "__notes__", ())]
    for line in lines:
        if line.startswith("full_key: "):
            return line.removeprefix("full_key: ")
    return ""


def configure_log(settings: Any, verbose: Any = False) -> None:
    """Set up Python's logging from the node `hydra.job_logging`."""
    with any_target():
        hydra.core.utils.configure_log(settings, verbose)


def changes_directory(config: DictConfig) -> bool:
    """Return whether Hydra changes to a job's directory before it runs the job."""
    chdir = config.hydra.job.chdir
    # An application that asks for the behaviour of Hydra 1.1 changes to it by default.
    return not IS_14 and not hydra.version.base_at_least("1.2") if chdir is None else bool(chdir)


def is_tuple(node: object) -> bool:
    """Return whether this is a tuple in a config. OmegaConf 2.3 has none: it converts tuples to lists."""
    return _is_tuple is not None and _is_tuple(node)
