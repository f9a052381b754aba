"""Metric from a plain function of all targets and predictions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainyard.batch import aligned
from trainyard.errors import ConfigError, TrainyardError
from trainyard.metrics.metric import Metric, Result
from trainyard.metrics.selection import described

TRUE = ("y_true", "labels_true", "target", "targets", "true", "labels", "reference")
PREDICTED = ("y_pred", "labels_pred", "preds", "pred", "predictions", "input", "output", "outputs", "logits")
SCORES = ("y_score", "y_prob", "y_proba", "probas_pred")
IGNORED = -100
"""Target that is ignored, as in torch's losses."""


class FunctionMetric(Metric):
    """Adapter for a function of all targets and predictions of a set, such as a scikit-learn metric.

    Targets and outputs are collected, and the function is called at the end, on the CPU. Its arguments are matched by
    name: `y_true` and `target` are targets, `y_pred` and `preds` are predictions. A function with a parameter whose
    name starts with `y_` or `labels_` receives NumPy arrays; other functions receive tensors. If the targets are
    classes,

    * `y_pred` is the class with the highest output, if outputs are `[N, ..., C]`;
    * `y_score` and `y_prob` are softmax probabilities, `[N, C]`; for two classes, the probability of the second class,
      `[N]`;
    * targets of -100 are omitted.

    The metric is not stackable: in a stack, each member has its own metric.

    Args:
        function: the function, with other arguments bound (`functools.partial`, `_partial_` in a config). The function
            returns a number, an array, or a mapping from names to numbers or arrays.
        prefix: see `Metric`.

    Raises:
        ConfigError: no parameter has a name for targets, or no parameter has a name for predictions.
    """

    selects = True

    def __init__(self, function: Callable[..., Any], prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.function = function
        self.title = getattr(function, "__name__", getattr(getattr(function, "func", None), "__name__", "function"))
        try:
            names = list(inspect.signature(function).parameters)
            hint = f"Parameters of {self.title}: {', '.join(names) or 'none'}."
        except ValueError:  # a function of an extension module
            names, hint = [], f"The parameters of {self.title} are not known. Call it in a Python function."
        self._true = next((name for name in names if name in TRUE), "")
        self._predicted = next((name for name in names if name in (*PREDICTED, *SCORES)), "")
        if not self._true or not self._predicted:
            accepted = (
                f"a function with a parameter for targets ({', '.join(TRUE)}) and one for predictions "
                f"({', '.join((*PREDICTED, *SCORES))})"
            )
            raise ConfigError("metric", self.title, accepted, hint=hint)
        self.reset()

    def process(self, batch: Any, outputs: Any) -> None:
        """Keep the targets and outputs of a batch.

        Raises:
            TrainyardError: targets or outputs are not tensors, or their shapes do not match.
        """
        outputs, target = self.read(batch, outputs)
        if not isinstance(outputs, Tensor) or not isinstance(target, Tensor):
            raise self.refusal(outputs, target, "two tensors")
        target = aligned(target, outputs)
        if outputs.shape[: target.ndim] != target.shape or outputs.ndim > target.ndim + 1:
            raise self.refusal(outputs, target, "outputs of the target's shape, or with an additional class axis")
        # Copies: outputs may lie in memory that the next batch overwrites.
        kind = torch.float32 if outputs.dtype in (torch.float16, torch.bfloat16) else outputs.dtype  # NumPy has not all
        self.kept.append((target.detach().clone(), outputs.detach().to(kind, copy=True)))

    def compute(self) -> Result:
        """Return the result of the function, float64.

        Raises:
            TrainyardError: no batch was processed, or the function raises an error or returns no numbers.
        """
        if not self.kept:
            raise TrainyardError(f"{self.title} cannot be computed, because no batch was processed.")
        target, outputs = (torch.cat([pair[i].cpu() for pair in self.kept]) for i in range(2))
        classes = outputs.ndim == target.ndim + 1
        target, outputs = target.flatten(), outputs.flatten(0, -2) if classes else outputs.flatten()
        if not target.is_floating_point() and bool((target == IGNORED).any()):
            counts = target != IGNORED
            target, outputs = target[counts], outputs[counts]
        if classes and not target.is_floating_point():
            outputs = self._of_classes(outputs)
        values: dict[str, Any] = {self._true: target, self._predicted: outputs}
        if self._true.startswith(("y_", "labels_")):
            values = {name: value.numpy() for name, value in values.items()}
        try:
            result = self.function(**values)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            said = str(error).rstrip(".")
            raise TrainyardError(
                f"{self.title} failed: {said}. The targets are {described(target)}, and the predictions are "
                f"{described(outputs)}."
            ) from error
        if isinstance(result, Mapping):
            return {
                str(name): self._tensor(value, f"a {type(result).__name__} whose entry {str(name)!r} is a ")
                for name, value in result.items()
            }
        return self._tensor(result, "a ")

    def _of_classes(self, outputs: Tensor) -> Tensor:
        if self._predicted in SCORES:
            shares = outputs.double().softmax(-1)
            return shares[:, 1] if shares.shape[-1] == 2 else shares
        return outputs.argmax(-1) if self._predicted in ("y_pred", "labels_pred") else outputs

    def _tensor(self, value: Any, returned: str) -> Tensor:
        try:
            if value is None:  # NumPy would make NaN of it
                raise TypeError
            return torch.as_tensor(np.asarray(value.cpu() if isinstance(value, Tensor) else value, dtype=np.float64))
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise TrainyardError(
                f"{self.title} returned {returned}{kind}; it must return a number, an array, or a dict of numbers and "
                "arrays."
            ) from None

    def reset(self) -> None:
        """Discard the targets and outputs."""
        self.kept: list[tuple[Tensor, Tensor]] = []

    def merge(self, other: Metric) -> None:
        """Append the targets and outputs of another metric."""
        if not isinstance(other, FunctionMetric):
            raise TypeError(f"{type(other).__name__} cannot be merged into FunctionMetric")
        self.kept = [*self.kept, *other.kept]
