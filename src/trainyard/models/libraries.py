"""Models of other libraries: the library if it is installed, and errors if its weights are not available."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from trainyard.errors import ConfigError


def library(name: str, extra: str, key: str = "_target_") -> ModuleType:
    """Import a library that a model needs and that is not installed with Trainyard.

    Args:
        name: the name of the module.
        extra: the extra of Trainyard that installs it.
        key: the key that needs it.

    Raises:
        ConfigError: it is not installed, or fails to import.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = f"Install it with: pip install 'trainyard[{extra}]'"
        given = name.partition(".")[0]
        absent = given if error.name in (name, given) else f"{given} or one of its dependencies ({error.name})"
        raise ConfigError(key, given, f"an installed library; {absent} is missing", hint=hint) from error
    except (ImportError, RuntimeError, OSError) as error:  # as torchvision of another torch does
        hint = f"Importing the library failed: {error}. Install a version that was built for this torch."
        raise ConfigError(key, name, "an importable library", hint=hint) from error


def not_at_hand(
    key: str,
    given: object,
    file: str | Path | None,
    error: Exception,
    instead: str = "remove this setting and set load_from=<file>",
) -> ConfigError:
    """Return the error for pretrained weights that are not in the cache of the library and could not be downloaded.

    Args:
        key: the argument that requests them.
        given: its value.
        file: their file or folder in the cache; None if it is unknown.
        error: the error of the library.
        instead: another way to get the weights without network access.
    """
    said = str(error).strip().split("\n")[0].rstrip(".")
    what = "the file at" if file is not None and Path(file).suffix else "the files in"
    place = "" if file is None else f"place {what} {file}, or "
    hint = f"Without network access, {place}{instead}. Error of the library: {said}."
    return ConfigError(key, given, "weights that can be downloaded or are in the library's cache", hint=hint)


def made(create: Callable[..., nn.Module], name: str, arguments: Mapping[str, Any], *, of: str) -> nn.Module:
    """Return `create(name, **arguments)`: a model of the library `of`.

    Raises:
        ConfigError: the model does not accept an argument.
    """
    try:
        return create(name, **arguments)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown.group(1) not in arguments:
            raise
        key = unknown.group(1)
        raise ConfigError(key, arguments[key], f"an argument that {of}'s {name} accepts") from None


def hub_file(repository: str, name: str) -> Path:
    """Return the path of a file of a repository in the cache of the Hugging Face hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = f"models--{repository.replace('/', '--')}"
    return Path(HF_HUB_CACHE) / folder / "snapshots" / "<commit>" / name
