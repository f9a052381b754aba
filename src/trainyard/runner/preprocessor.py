"""Preprocessor of the data, placed before the preprocessor of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainyard.config.build import build, is_node, taken_out
from trainyard.errors import ConfigError
from trainyard.models import BaseModel
from trainyard.models.base import as_module

NAME = "data"
"""Its name if the preprocessors of the model have names."""


def with_preprocessor(model: Any, fitted: Mapping[str, Any] | None) -> Any:
    """Return the model, or its config, with the preprocessor of the data before its own.

    Args:
        model: a config with every `auto` filled in, or a module, which is changed in place.
        fitted: the config of the preprocessor; None does not change the model.

    Raises:
        ConfigError: the model has no `data_preprocessor`.
    """
    if fitted is None:
        return model
    node = dict(fitted)
    accepted = "a trainyard.models.BaseModel"
    hint = "The data needs standardization or encoding, which the data_preprocessor of a BaseModel applies."
    if not isinstance(model, Mapping):
        if not isinstance(model, BaseModel):
            raise ConfigError("model", type(model).__name__, accepted, hint=hint)
        own = model.data_preprocessor
        module = build(node, "data.preprocessor")
        first = own if own is None or not hasattr(own, "0") else own.get_submodule("0")
        if type(first) is not type(module):  # a second Runner of the same model
            model.data_preprocessor = module if own is None else as_module([module, own])
        return model
    if is_node(model) and taken_out({**model, "data_preprocessor": node}, "data_preprocessor")[1] is not None:
        accepted = "a class whose __init__ takes data_preprocessor, like that of trainyard.models.BaseModel"
        raise ConfigError("model", model["_target_"], accepted, hint=hint)
    own = model.get("data_preprocessor")
    if own is None:
        both: Any = node
    elif is_node(own):
        both = [node, own]
    else:
        both = {NAME: node, **own} if isinstance(own, Mapping) else [node, *own]
    return {**model, "data_preprocessor": both}
