"""Validation by the losses of the model, for a run without metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from trainyard.batch import ITEMS, NoTargetError, samples
from trainyard.metrics import Metric
from trainyard.metrics.metric import Result
from trainyard.models import BaseModel, call
from trainyard.models.base import total_loss
from trainyard.step.group import items_of
from trainyard.step.step import Step

NAME = "loss"
"""Name of the metric `ModelLosses` among the metrics of a run."""


class ModelLosses(Metric):
    """Means of the losses of a model in `mode="loss"`: `loss`, the sum, and each of its parts.

    A batch is weighted by the `num_items` that the model returns in addition to its losses, otherwise by its number of
    samples. The processed outputs are the losses; None, for a batch without a target, is ignored.
    """

    stackable = True
    capturable = True

    def process(self, batch: Any, outputs: Any) -> None:
        if outputs is None:
            return
        stacked = self.members is not None
        loss = total_loss(outputs, stacked=stacked)
        size = items_of({ITEMS: samples(batch)} | outputs, loss)
        assert size is not None
        found = {key: value for key, value in Step.outputs(outputs, loss).items() if key != ITEMS}
        sums = {f"{key} sum": torch.where(size > 0, value * size, 0) for key, value in found.items()}
        self.add(sums | {f"{key} size": size for key in found})

    def compute(self) -> Result:
        """Return the means by name; nothing if no batch had a target."""
        names = [key.removesuffix(" sum") for key in self.state if key.endswith(" sum")]
        return {name: self.state[f"{name} sum"] / self.state[f"{name} size"] for name in names}


def evaluates_itself(model: nn.Module) -> bool:
    """Return whether the class of a model defines its own validation: `val_step`, `test_step`, or no single loss."""
    inner: Any = getattr(model, "code", None) or getattr(model, "module", model)  # of a stack; of a wrapper of ranks
    kind = type(inner)
    own = [getattr(kind, name, None) for name in ("val_step", "test_step")]
    base = [None, BaseModel.val_step, BaseModel.test_step]
    return hasattr(inner, "train_steps") or any(method not in base for method in own)


def loss_step(model: Any) -> Callable[[Any], Any]:
    """Return the function from a batch to the losses of a model, or to None if the batch has no target."""
    own: Callable[[Any], Any] = getattr(model, "loss_step", None) or partial(call, model, mode="loss")

    def losses(batch: Any) -> Any:
        try:
            return own(batch)
        except NoTargetError:
            return None

    return losses


def predictions(runner: Any, split: str, batch: Any, outputs: Any) -> Any:
    """Return the predictions for a batch in an evaluation, whose outputs are the model's losses if it has no metric."""
    return runner.predict_step(split, losses=False)(batch) if runner.validates_by_loss else outputs
