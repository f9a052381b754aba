"""Optimizer of a model, from any form that the Runner accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trainyard.errors import ConfigError
from trainyard.optim import without_dynamo
from trainyard.optim.build import build, from_config, groups_of
from trainyard.optim.identity import optimizers_of
from trainyard.optim.several import OptimizerDict, build_several, owner


class ByModel:
    """Placeholder for the optimizer that the model configures itself (`optim=model`)."""

    def of(self, model: nn.Module) -> Optimizer:
        """Return the optimizer that the model configures.

        Raises:
            ConfigError: the model configures no optimizer.
        """
        make: Any = getattr(model, "configured_optimizers", None)
        if make is None:
            hint = "Use a LightningModule (model=lightning), or another option of `optim`."
            raise ConfigError(
                "optim", "model", f"an optimizer, because {type(model).__name__} does not configure one", hint=hint
            )
        made: dict[str, Optimizer] = make()
        return next(iter(made.values())) if len(made) == 1 else OptimizerDict(made)


def for_model(given: Any, model: nn.Module) -> Optimizer:
    """Return the optimizer of the trainable parameters of `model`; an `OptimizerDict` if it has `train_steps`.

    Args:
        given: an optimizer of this model, a partial that builds an optimizer, or its config; for a model with
            `train_steps`, a mapping from names to these.
        model: the model, already on the training device.

    Raises:
        ConfigError: the config is invalid (key `optim`), or the model has no trainable parameter (key `model`).
    """
    part = from_config(given)
    if isinstance(part, ByModel):
        part = part.of(model)
    several = hasattr(model, "train_steps")
    if several and not isinstance(part, OptimizerDict) and not getattr(model, "optimizer_groups", None):
        if hasattr(model, "configured_optimizers"):
            raise ConfigError("optim", part, "optim=model, because this model configures several optimizers")
        accepted = "a model with `optimizer_groups`, because it has `train_steps` (docs/optim.md)"
        raise ConfigError("model", type(model).__name__, accepted)
    if several != isinstance(part, Mapping | OptimizerDict):
        names = ", ".join(getattr(model, "optimizer_groups", ()))
        accepted = (
            f"a config for each of {names}"
            if several
            else "one config with `_target_`, because the model has no train_steps"
        )
        raise ConfigError("optim", part, accepted)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        frozen = any(True for _ in model.parameters())
        hint = "Every parameter has requires_grad=False." if frozen else "The module has no parameters."
        raise ConfigError("model", type(model).__name__, "a module with at least one trainable parameter", hint=hint)
    if isinstance(part, Optimizer):
        held = {id(parameter) for group in part.param_groups for parameter in group["params"]}
        if not any(id(parameter) in held for parameter in parameters):
            raise ConfigError("optim", type(part).__name__, "an optimizer of this model's parameters")
        return part
    if not isinstance(part, Mapping) and not callable(part):
        raise ConfigError("optim", part, "an optimizer, or a config with `_partial_: true` that builds one")
    try:
        return build_several(part, model) if isinstance(part, Mapping) else build(part, parameters, model)
    except ConfigError as error:
        raise error.under("optim") from None


def add(optimizer: Optimizer, given: Any, model: nn.Module, names: Sequence[str]) -> None:
    """Add parameters of the model to an optimizer, in new groups, with the numbers with which the optimizer was built.

    Args:
        optimizer: the result of `for_model`.
        given: the value from which it was built; its `paramwise` rules also apply to the new groups.
        model: the same.
        names: the names of the parameters.
    """
    part = from_config(given)
    for name, own in optimizers_of(optimizer).items():
        parameters = [model.get_parameter(each) for each in names if not name or owner(model, each) == name]
        if not parameters:
            continue
        for group in groups_of(part[name] if isinstance(part, Mapping) else part, parameters, model):
            without_dynamo.method(own, "add_param_group")(group)
