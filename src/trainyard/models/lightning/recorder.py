"""Recorder of the values that a LightningModule logs with `self.log` and `self.log_dict` in its steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from trainyard.batch import samples
from trainyard.errors import TrainyardError

log = logging.getLogger(__name__)

REDUCTIONS = ("mean", "sum", "max", "min")
PREFIXES = {
    "train": ("train_", "train/", "training_"),
    "val": ("val_", "val/", "valid_", "valid/", "validation_", "validation/"),
    "test": ("test_", "test/"),
}
"""Prefixes of names that repeat the name of the set."""


def name_in(split: str, name: str) -> str:
    """Return a logged name without its set: `val_loss` is `loss` of `val`."""
    return next((name.removeprefix(each) for each in PREFIXES[split] if name.startswith(each)), name)


@dataclass(frozen=True)
class Entry:
    """One logged value.

    Attributes:
        value: a scalar, or a metric of torchmetrics, which is computed at the end.
        weight: the number of its samples.
        reduction: the reduction over several batches: `mean`, `sum`, `max` or `min`.
    """

    value: Any
    weight: int = 1
    reduction: str = "mean"


@dataclass(frozen=True)
class Evaluated:
    """Output of a validation or test step: the logged values.

    Attributes:
        model: the `Lightning` that made the step.
        split: "val" or "test".
        logged: entries by name.
    """

    model: Any
    split: str
    logged: dict[str, Entry] = field(default_factory=dict)


class Recorder:
    """Records the values that a step logs.

    Args:
        split: "train", "val" or "test".
        batch: the batch of the step; None between two batches.
        device: the device of the model.
    """

    def __init__(self, split: str, batch: Any, device: torch.device) -> None:
        self._split = split
        self._samples = 1 if batch is None else samples(batch)
        self._device = device
        self.entries: dict[str, Entry] = {}

    def log(
        self, name: str, value: Any, *_: Any, reduce_fx: Any = "mean", batch_size: int | None = None, **__: Any
    ) -> None:
        """Record a value, as `LightningModule.log` does; arguments about progress bars and devices are ignored.

        Raises:
            TrainyardError: the value is not a number, or `reduce_fx` is a function.
        """
        reduction = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "")
        reduction = {"amax": "max", "amin": "min"}.get(reduction, reduction)
        if reduction not in REDUCTIONS:
            raise TrainyardError(
                f"self.log({name!r}) received reduce_fx={reduce_fx!r}, but requires one of {', '.join(REDUCTIONS)}."
            )
        if isinstance(value, Mapping):
            for key, each in value.items():
                self.log(f"{name}.{key}", each, reduce_fx=reduce_fx, batch_size=batch_size)
            return
        if not is_metric(value):
            if not isinstance(value, Tensor | Real):
                raise TrainyardError(
                    f"self.log({name!r}) received a {type(value).__name__}, but requires a number, a tensor or a "
                    "metric of torchmetrics."
                )
            value = torch.as_tensor(value, device=self._device).detach()
            if value.numel() != 1:
                raise TrainyardError(
                    f"self.log({name!r}) received a value of shape {list(value.shape)}, but requires one number."
                )
            value = value.reshape(())
            value = value if value.is_floating_point() else value.float()
        entry = Entry(value, self._samples if batch_size is None else int(batch_size), reduction)
        self.entries[name_in(self._split, name)] = entry

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Record several values."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)

    def numbers(self) -> dict[str, Tensor]:
        """Return the values of a training step by name; the loss is recorded in any case.

        Metrics of torchmetrics are left out, with one warning for each name.
        """
        found = {name: entry.value for name, entry in self.entries.items() if name != "loss"}
        for name, value in found.items():
            if not isinstance(value, Tensor):
                _warn_once(name)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@cache
def _warn_once(name: str) -> None:
    log.warning(
        "%r is a metric of torchmetrics that training_step logs. It is not recorded: log a number instead, or log the "
        "metric in validation_step or test_step.",
        name,
    )


def is_metric(value: Any) -> bool:
    """Return whether a value is a metric of torchmetrics, which is recognized by its methods."""
    return not isinstance(value, Tensor) and all(hasattr(value, name) for name in ("update", "compute", "reset"))
