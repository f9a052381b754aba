"""Results that a LightningModule logs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainyard.errors import TrainyardError
from trainyard.metrics.metric import Metric
from trainyard.metrics.selection import described
from trainyard.models.lightning import Evaluated
from trainyard.models.lightning.recorder import Entry, is_metric


class Logged(Metric):
    """The values that the steps of a `LightningModule` log in an evaluation, named without the prefix of the set.

    A value is the mean over the batches, weighted by samples, or the reduction `reduce_fx`. A torchmetrics metric is
    computed and reset at the end. Values that are logged at the end of the epoch are included.
    """

    def __init__(self) -> None:
        super().__init__()
        self._source: Evaluated | None = None
        self._entries: dict[str, Entry] = {}

    def reset(self) -> None:
        super().reset()
        self._source, self._entries = None, {}

    def process(self, batch: Any, outputs: Any) -> None:
        """Add the values that a step logged."""
        if not isinstance(outputs, Evaluated):
            raise TrainyardError(
                f"Logged: the outputs are {described(outputs)}, but the metric needs values logged by a "
                "LightningModule (model=lightning)."
            )
        self._source = outputs
        for name, entry in outputs.logged.items():
            self._add(name, entry)

    def _add(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry
        if is_metric(entry.value):
            return
        value = entry.value.detach().double()
        if entry.reduction in ("max", "min"):
            held = self.state.get(name)
            self.state[name] = value if held is None else getattr(torch, f"{entry.reduction}imum")(held, value)
        else:
            weight = entry.weight if entry.reduction == "mean" else 1
            self.add({name: value * weight, f"{name}.weight": torch.full_like(value, weight)})

    def compute(self) -> dict[str, Tensor]:
        """Return the results by name.

        Raises:
            TrainyardError: no value was logged.
        """
        if self._source is None:
            raise TrainyardError("Logged cannot be computed, because no batch was processed.")
        for name, entry in self._source.model.finish(self._source.split).entries.items():
            self._add(name, entry)
        if not self._entries:
            step = "validation_step" if self._source.split == "val" else "test_step"
            kind = type(self._source.model.module).__name__
            raise TrainyardError(
                f"{kind}.{step} logs nothing. Call self.log(name, value) in this method to log a result."
            )
        return {name: self._result(name, entry) for name, entry in self._entries.items()}

    def _result(self, name: str, entry: Entry) -> Tensor:
        if is_metric(entry.value):
            found: Tensor = torch.as_tensor(entry.value.compute()).clone()
            entry.value.reset()
            return found
        if entry.reduction == "mean":
            return self.state[name] / self.state[f"{name}.weight"]
        return self.state[name]
