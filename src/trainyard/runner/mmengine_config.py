"""Detection of configs of MMEngine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from trainyard.errors import ConfigError

_OF_MMENGINE = (
    *("train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "val_evaluator", "test_evaluator"),
    *("optim_wrapper", "param_scheduler", "default_hooks", "custom_hooks", "default_scope", "model_wrapper_cfg"),
)
"""Keys of MMEngine configs that a Trainyard config does not have."""


def check_not_mmengine(cfg: Any) -> None:
    """Raise a `ConfigError` for an MMEngine config; values that are not configs are ignored."""
    if not isinstance(cfg, Mapping | DictConfig):
        cfg = getattr(cfg, "_cfg_dict", None)  # mmengine.Config is not a Mapping
    if not isinstance(cfg, Mapping | DictConfig):
        return
    model = cfg.get("model")
    given: dict[str, Any] = {key: cfg[key] for key in _OF_MMENGINE if key in cfg}
    if isinstance(model, Mapping | DictConfig) and "type" in model and "_target_" not in model:
        given["model.type"] = model["type"]
    if not given:
        return
    key, value = next(iter(given.items()))
    hint = "This is an MMEngine config. docs/coming-from-openmmlab.md lists the corresponding options of Trainyard."
    accepted = "a composed config of Trainyard: model, data, optim, schedule, hook, metric, loop"
    raise ConfigError(key, value, accepted, hint=hint)
