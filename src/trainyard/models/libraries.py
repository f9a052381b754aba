"""Models of other libraries: the library if it is installed, and errors if its weights are not available."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
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
        absent = given if error.name in (name, given) else f"{error.name or error}, which {given} imports,"
        raise ConfigError(key, given, f"an installed library; {absent} is missing", hint=hint) from error
    except (ImportError, RuntimeError, OSError) as error:  # as torchvision of another torch does
        said = str(error).strip().rstrip(".")
        advice = "Install a version that is compatible with the installed torch and the other packages."
        hint = f"Importing the library failed: {said}. {advice}"
        raise ConfigError(key, name, "an importable library", hint=hint) from error


def not_at_hand(
    key: str,
    given: object,
    place: str,
    error: Exception,
    instead: str,
) -> ConfigError:
    """Return the error for pretrained weights that are not in the cache of the library and could not be downloaded.

    Args:
        key: the argument that requests them.
        given: its value.
        place: how to put them into the cache by hand, in the imperative; empty if it is unknown.
        error: the error of the library.
        instead: another way to get the weights without network access.
    """
    said = str(error).strip().split("\n")[0].rstrip(".")
    either = f"{place}, or " if place else ""
    hint = f"Without network access, {either}{instead}. Error of the library: {said}."
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


def copy_of_cache(repository: str) -> str:
    """Return how to put a repository of the Hugging Face hub into its cache by hand, for `not_at_hand`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = f"models--{repository.replace('/', '--')}"
    return f"copy the folder {folder} to {HF_HUB_CACHE} from the Hugging Face cache of another machine"
