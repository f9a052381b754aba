"""Step of an optimizer that evaluates the loss itself, possibly several times: LBFGS, SAM."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trainyard.errors import ConfigError
from trainyard.models.base import total_loss
from trainyard.step.precision import ScaledAutocast
from trainyard.step.step import Step


class ClosureStep(Step):
    """Step in which forward, backward and clipping are a closure, which the optimizer calls.

    The outputs are those of its first call, at the parameters before the step.
    """

    def __call__(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}

        def closure() -> Tensor:
            for parameter in self.parameters:
                parameter.grad = None
            losses = self.precision.forward(self.train_step, batch)
            loss = total_loss(losses)
            self.precision.backward(loss)
            norms = self.clip(self.parameters)
            if not outputs:
                outputs.update(self.outputs(losses, loss) | norms)
            return loss.detach()

        self.precision.step(self.optimizer, partial(self.unwrapped_step, closure))
        for parameter in self.parameters:
            parameter.grad = None
        return outputs

    def uncaptured(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        return self(batch, position, total)  # it is never captured


def check_closure(optimizer: Optimizer, precision: Any, accumulate: int) -> None:
    """Check that the settings of the run are compatible with an optimizer that needs a closure.

    Raises:
        ConfigError: the run accumulates or scales gradients.
    """
    name = type(optimizer).__name__
    if accumulate > 1:
        hint = (
            "The optimizer evaluates the loss of one batch several times; for larger batches, increase the batch size."
        )
        raise ConfigError("accumulate", accumulate, f"1 for {name}, whose step takes a closure", hint=hint)
    if isinstance(precision, ScaledAutocast):
        hint = "The gradient scaler cannot step with a closure."
        raise ConfigError("precision", "fp16", f"fp32, tf32 or bf16 for {name}, whose step takes a closure", hint=hint)
