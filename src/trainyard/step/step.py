"""One optimisation step: forward, backward, clip, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trainyard.checks import integer
from trainyard.distributed.shares import like
from trainyard.models.base import not_one_number, total_loss
from trainyard.optim.without_dynamo import UnwrappedStep
from trainyard.step.clip import NoClip
from trainyard.step.precision import Losses, Precision


class Step:
    """Forward, backward, clip, optimizer, for one batch.

    Args:
        train_step: a batch in, a dict of losses out; every loss whose key contains `loss` is summed.
        optimizer: already on the device of the parameters.
        precision: how forward, backward and step are run.
        clip: called with the parameters once their gradients are whole.
        stacked: whether the losses are those of a stack, `[K]`.

    Attributes:
        accumulate: batches to one step of the optimizer.
        warm_up: number of steps of the optimizer after which steps take as long as they will.
    """

    accumulate: int = 1
    warm_up: int = 1

    def __init__(
        self,
        train_step: Callable[[Any], Losses],
        optimizer: Optimizer,
        precision: Precision,
        clip: NoClip,
        *,
        stacked: bool = False,
    ) -> None:
        self.train_step = train_step
        self.optimizer = optimizer
        self.precision = precision
        self.clip = clip
        self.stacked = stacked
        self.unwrapped_step = UnwrappedStep(optimizer)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that the optimizer holds now. A hook may add some, so they are read anew for every step."""
        groups = self.optimizer.param_groups
        if len(groups) == 1:
            own: list[Tensor] = groups[0]["params"]
            return own
        return [parameter for group in groups for parameter in group["params"]]

    def __call__(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        """Run one step.

        Args:
            batch: a batch of the loader.
            position: the number of this batch within its epoch (or run, in an iteration loop), from 0.
            total: how many batches that epoch (or run) has.

        Returns:
            `loss` (the sum) and the model's other losses, detached, on the device, without synchronization.
        """
        return self.learn(self.precision.forward(self.train_step, batch), position, total)

    def learn(
        self, losses: Losses, position: int, total: int, inputs: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Run what follows the forward pass; `inputs`, if given, are all that gradients are computed for."""
        loss = total_loss(losses, stacked=self.stacked)
        self.precision.backward(loss, inputs)
        return self.outputs(losses, loss) | self._update()

    def _update(self) -> dict[str, Tensor]:
        self.precision.unscale(self.optimizer)
        parameters = self.parameters
        norms = self.clip(parameters)
        self.precision.step(self.optimizer, self.unwrapped_step)
        for parameter in parameters:  # as zero_grad does, without its bookkeeping for profilers
            parameter.grad = None
        return norms

    @staticmethod
    def outputs(losses: Losses, loss: Tensor) -> dict[str, Tensor]:
        """Return the outputs of a batch: `loss`, the sum, and the other numbers that the model returns.

        Raises:
            TrainyardError: a tensor has more than one number for each member.
        """
        outputs: dict[str, Tensor] = {}
        for key, value in losses.items():
            if key != "loss" and isinstance(value, Tensor):
                if value.numel() != loss.numel():
                    raise not_one_number(key, value.shape[loss.dim() :], "It is recorded as train/" + key)
                outputs[key] = value.detach()
        outputs["loss"] = loss.detach()
        return outputs

    def state_dict(self) -> dict[str, Any]:
        return {"precision": self.precision.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.precision.load_state_dict(state["precision"])


class AccumulatedStep(Step):
    """Step of the optimizer every `accumulate` batches; the last group of an epoch (or run) may be shorter.

    Each batch counts by its share of its group, so that a group of any length gives the mean over its batches.

    Args:
        accumulate: batches to a group.
        no_sync: a context for forward and backward of the batches of a group before its last.
    """

    def __init__(
        self,
        *args: Any,
        accumulate: int,
        no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
        stacked: bool = False,
    ) -> None:
        super().__init__(*args, stacked=stacked)
        self.accumulate = accumulate
        self._no_sync = no_sync

    def __call__(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        within, size = self.group(position, total)
        with nullcontext() if within + 1 == size else self._no_sync():
            return super().__call__(batch, position, total)

    def group(self, position: int, total: int) -> tuple[int, int]:
        """Return the number of a batch within its group, from 0, and how many batches that group has."""
        within = position % self.accumulate
        return within, min(self.accumulate, total - (position - within))

    def learn(
        self, losses: Losses, position: int, total: int, inputs: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        within, size = self.group(position, total)
        loss = total_loss(losses, stacked=self.stacked)
        self.precision.backward(loss, inputs, size)
        outputs = self.outputs(losses, loss)
        return outputs if within + 1 < size else outputs | self._update()

    def state_dict(self) -> dict[str, Any]:
        gradients = [parameter.grad for parameter in self.parameters]
        pending = any(gradient is not None for gradient in gradients)
        return {**super().state_dict(), "gradients": gradients if pending else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for parameter, gradient in zip(self.parameters, state.get("gradients") or [], strict=False):
            parameter.grad = None if gradient is None else like(gradient.to(parameter.device, copy=True), parameter)


def make_step(
    train_step: Callable[[Any], Losses],
    optimizer: Optimizer,
    *,
    precision: Precision,
    clip: NoClip,
    accumulate: int,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
    stacked: bool = False,
) -> Step:
    """Return the step for these settings.

    Raises:
        ConfigError: `accumulate` is no integer of at least 1.
    """
    accumulate = integer("accumulate", accumulate, at_least=1)
    if accumulate == 1:
        return Step(train_step, optimizer, precision, clip, stacked=stacked)
    return AccumulatedStep(
        train_step, optimizer, precision, clip, accumulate=accumulate, no_sync=no_sync, stacked=stacked
    )
