"""Checks of a LightningModule: what it may define, and which methods are rejected."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from trainyard.errors import ConfigError, FindingError

REFUSED = {
    "backward": "the run performs the backward pass",
    "configure_callbacks": "hooks replace callbacks: hook=[…] (docs/hooks.md)",
    "configure_gradient_clipping": "clip_grad_norm=… or clip_grad_value=… clips gradients",
    "configure_optimizers_and_schedulers": "configure_optimizers returns both",
    "configure_sharded_model": "strategy=fsdp shards a model that is not a LightningModule",
    "lr_scheduler_step": "schedulers are stepped according to their interval, frequency and monitor",
    "on_after_backward": "hook=norms records the norms of gradients",
    "on_after_batch_transfer": "model.data_preprocessor changes batches on the device",
    "on_before_backward": "the run performs the backward pass",
    "on_before_batch_transfer": "model.data_preprocessor changes batches on the device",
    "on_before_optimizer_step": "hook=norms records the norms of gradients, and clip_grad_norm=… clips them",
    "on_before_zero_grad": "a hook of your own can define before_train_iter",
    "on_load_checkpoint": "register values for the checkpoint as buffers (register_buffer)",
    **dict.fromkeys(
        (f"on_predict_{each}" for each in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")),
        "a prediction is the result of forward, or of predict_step if there is no forward",
    ),
    "on_predict_model_eval": "the run calls train() and eval()",
    "on_predict_model_train": "the run calls train() and eval()",
    "on_save_checkpoint": "register values for the checkpoint as buffers (register_buffer)",
    "on_test_model_eval": "the run calls train() and eval()",
    "on_test_model_train": "the run calls train() and eval()",
    "on_validation_model_eval": "the run calls train() and eval()",
    "on_validation_model_train": "the run calls train() and eval()",
    "on_validation_model_zero_grad": "gradients are set to None after each step",
    "optimizer_step": "the run steps the optimizer",
    "optimizer_zero_grad": "gradients are set to None after each step",
    "predict_dataloader": "data=… sets the data; data=loaders accepts DataLoaders",
    "prepare_data": "data=… sets the data",
    "test_dataloader": "data=… sets the data; data=loaders accepts DataLoaders",
    "train_dataloader": "data=… sets the data; data=loaders accepts DataLoaders",
    **dict.fromkeys(
        ("training_step_end", "validation_step_end", "test_step_end"),
        "Lightning 2 has no such method; move its code to the end of the step",
    ),
    "training_epoch_end": "Lightning 2 replaced this method with on_train_epoch_end",
    "transfer_batch_to_device": "the run moves batches to the device",
    "val_dataloader": "data=… sets the data; data=loaders accepts DataLoaders",
    "validation_epoch_end": "Lightning 2 replaced this method with on_validation_epoch_end",
    "test_epoch_end": "Lightning 2 replaced this method with on_test_epoch_end",
}
"""Methods that a LightningModule may override but that Trainyard never calls, each with the alternative."""
INDEX = "batch_idx"
LIBRARIES = ("lightning", "pytorch_lightning", "lightning_fabric", "torch")
NEEDED = ("training_step", "configure_optimizers", "log", "automatic_optimization")


def check_module(module: Any) -> nn.Module:
    """Return the module, after a check that it is a LightningModule that can be trained here.

    Raises:
        ConfigError: it is not a LightningModule, optimizes manually, or overrides a method that is never called.
    """
    if not isinstance(module, nn.Module) or not all(hasattr(module, name) for name in NEEDED):
        accepted = "a LightningModule, or a `_target_` that builds one"
        hint = (
            "For other modules, use trainyard.models.Supervised (docs/models.md)."
            if isinstance(module, nn.Module)
            else ""
        )
        raise ConfigError("module", module if module is None else type(module).__name__, accepted, hint=hint)
    name = type(module).__name__
    if not module.automatic_optimization:
        accepted = "a LightningModule with automatic optimization"
        hint = "For several optimizers, define train_steps in a BaseModel (docs/optim.md) instead of manual_backward."
        raise FindingError("module", f"{name} sets automatic_optimization = False", accepted, hint=hint)
    if not overridden(module, "training_step"):
        raise ConfigError("module", name, "a LightningModule with a training_step")
    for method, instead in REFUSED.items():
        if overridden(module, method):
            accepted = f"a LightningModule without this method: {instead}"
            raise FindingError("module", f"{name} defines {method}", accepted)
    return module


def overridden(module: nn.Module, method: str) -> bool:
    """Return whether a class other than Lightning's own defines a method."""
    for kind in type(module).__mro__:
        if method in vars(kind):
            own = getattr(vars(kind)[method], "__module__", None) or kind.__module__
            return str(own).partition(".")[0] not in LIBRARIES
    return False


def accepted_arguments(method: Any, given: dict[str, Any], first: Sequence[Any] = ()) -> dict[str, Any]:
    """Return those of the arguments `given` that a method accepts after its positional arguments `first`.

    As in Lightning, the index of the batch is recognized by its position, so its parameter can have any name.
    """
    parameters = inspect.signature(method).parameters
    own = list(parameters.values())[len(first) :]
    if first and INDEX in given and own and own[0].kind is own[0].POSITIONAL_OR_KEYWORD and own[0].name not in given:
        given = {own[0].name if name == INDEX else name: value for name, value in given.items()}
    if any(each.kind is each.VAR_KEYWORD for each in own):
        return given
    names = [each.name for each in own]
    return {name: value for name, value in given.items() if name in names}
