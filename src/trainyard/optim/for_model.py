"""Optimizer of a model, from any form that the Runner accepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trainyard.errors import ConfigError
from trainyard.optim.build import build, from_config
from trainyard.optim.several import OptimizerDict, build_several


def for_model(given: Any, model: nn.Module) -> Optimizer:
    """Return the optimizer of the trainable parameters of `model`; an `OptimizerDict` if it has `train_steps`.

    Args:
        given: an optimizer of this model, a partial that makes one, or its config; for a model with `train_steps` a
            mapping of those by name.
        model: already on the device of the training.

    Raises:
        ConfigError: under `optim`.
    """
    part = from_config(given)
    several = hasattr(model, "train_steps")
    if several != isinstance(part, Mapping | OptimizerDict):
        names = ", ".join(getattr(model, "optimizer_groups", ()))
        accepted = f"a config for each of {names}" if several else "one, since the model has no train_steps"
        raise ConfigError("optim", part, accepted)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if isinstance(part, Optimizer):
        held = {id(parameter) for group in part.param_groups for parameter in group["params"]}
        if not any(id(parameter) in held for parameter in parameters):
            raise ConfigError("optim", type(part).__name__, "an optimiser of this model's parameters")
        return part
    if not isinstance(part, Mapping) and not callable(part):
        raise ConfigError("optim", part, "an optimiser, or a config with `_partial_: true` that makes one")
    try:
        return build_several(part, model) if isinstance(part, Mapping) else build(part, parameters, model)
    except ConfigError as error:
        raise error.under("optim") from None
