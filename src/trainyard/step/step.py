"""One optimization step: forward, backward, clip, optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trainyard import batch as batches
from trainyard.batch import ITEMS
from trainyard.checks import choice, integer
from trainyard.data import Batch, Loader
from trainyard.distributed.shares import like
from trainyard.errors import ConfigError
from trainyard.models.base import LOGGED, not_one_number, total_loss
from trainyard.optim.without_dynamo import UnwrappedStep
from trainyard.step.clip import NoClip
from trainyard.step.group import BY, GroupPosition, GroupWeights, items_of, multiply
from trainyard.step.precision import Losses, Precision

log = logging.getLogger(__name__)


class Step:
    """Forward, backward, clip, optimizer, for one batch.

    Args:
        train_step: a function from a batch to a dict of losses; every loss whose key contains `loss` is summed.
        optimizer: the optimizer, already on the device of the parameters.
        precision: the precision of forward, backward and step.
        clip: called with the parameters when their gradients are complete.
        by: the weight of a batch in a mean over several batches: "items" (`num_items` that the model returns, otherwise
            its samples), or "batches" (equal weights).
        samples: returns the number of samples of a batch, of all ranks together.
        stacked: whether the losses are those of a stack, `[K]`.

    Attributes:
        accumulate: batches per optimizer step.
        warm_up: the number of optimizer steps after which the time of a step is constant.
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
        by: str = "items",
        samples: Callable[[Any], int] = batches.samples,
        stacked: bool = False,
    ) -> None:
        self.by = by
        self.samples_of = samples
        self.train_step = train_step
        self.optimizer = optimizer
        self.precision = precision
        self.clip = clip
        self.stacked = stacked
        self.unwrapped_step = UnwrappedStep(optimizer)

    @property
    def parameters(self) -> list[Tensor]:
        """The current parameters of the optimizer. A hook may add some, so they are read again for every step."""
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
            total: the number of batches in this epoch (or run).

        Returns:
            `loss` (the sum) and the model's other losses, detached, on the device, without synchronization.
        """
        return self.learn(self.precision.forward(self.train_step, batch), position, total)

    def uncaptured(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        """Run one step without a CUDA graph, and without counting it as a step before a capture."""
        return Step.__call__(self, batch, position, total)

    def batches_of(self, loader: Loader, epoch: int, start: int) -> Iterator[Batch]:
        """Return the batches of `loader` in the form that this step needs."""
        return loader.batches(epoch, start)

    def samples(self, batch: Any) -> int:
        """Return the weight of a batch, unless the model returns `num_items`."""
        return 1 if self.by == "batches" else self.samples_of(batch)

    def weight(self, batch: Any, outputs: Mapping[str, Tensor]) -> int | Tensor:
        """Return the weight of the outputs of a batch in a mean over several batches; samples count if they count in a
        step."""
        items = None if self.by == "batches" else outputs.get(ITEMS)
        if items is not None:
            return items
        return 1 if self.accumulate == 1 else self.samples(batch)

    def learn(
        self,
        losses: Losses,
        position: int,
        total: int,
        inputs: Sequence[Tensor] | None = None,
        samples: int = 1,
    ) -> dict[str, Tensor]:
        """Run what follows the forward pass.

        Args:
            losses: the result of the model.
            position, total: as for a step.
            inputs: the tensors for which gradients are computed; None: all parameters.
            samples: the result of `samples(batch)`.
        """
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
        """Return the outputs of a batch: `loss`, the sum, and the other numbers that the model returns or has logged.

        Raises:
            TrainyardError: a tensor has more than one number for each member.
        """
        outputs: dict[str, Tensor] = {}
        logged = losses.get(LOGGED)
        numbers = {**losses, **logged}.items() if logged is not None and isinstance(logged, Mapping) else losses.items()
        for key, value in numbers:
            if key != "loss" and isinstance(value, Tensor):
                if value.numel() != loss.numel():
                    raise not_one_number(key, value.shape[loss.dim() :], "It is recorded as a metric")
                outputs[key] = value.detach()
        outputs["loss"] = loss.detach()
        return outputs

    def state_dict(self) -> dict[str, Any]:
        return {"precision": self.precision.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.check_group(state)
        self.precision.load_state_dict(state["precision"])

    def check_group(self, state: Mapping[str, Any]) -> None:
        """Check that this step can continue the group of a saved state, if gradients are pending there.

        Raises:
            ConfigError: the group has another number of batches.
        """
        if state.get("gradients") is None:
            return
        saved = (state.get("group") or {}).get("accumulate")  # unknown in a checkpoint of an earlier version
        if saved != self.accumulate and (saved is not None or self.accumulate == 1):
            number = "the value" if saved is None else f"{saved}, the value"
            ends = "" if saved is None else f", or with loop=iter at a multiple of {saved} iterations"
            raise ConfigError(
                "accumulate",
                self.accumulate,
                f"{number} of the checkpoint, which was saved within a group of batches",
                hint="To change accumulate, resume from a checkpoint that was saved at the end of a group: at the end "
                f"of an epoch{ends}.",
            )


class AccumulatedStep(Step):
    """Step of the optimizer every `accumulate` batches; the last group of an epoch (or run) may be shorter.

    The gradients of a group are those of the mean over all of its items, as if it were one batch: each batch is
    weighted by the number of items that the model returns under `num_items`, otherwise by its samples. With `batches`,
    all weights are equal.

    Args:
        accumulate: batches per group.
        by, samples, stacked: see `Step`.
        no_sync: a context for forward and backward of the batches of a group before its last.
    """

    def __init__(
        self,
        *args: Any,
        accumulate: int,
        no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.accumulate = accumulate
        self.by_samples = GroupWeights()
        self.by_items = GroupWeights()
        self._no_sync = no_sync

    def __call__(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        within, size = self.group(position, total)
        with nullcontext() if within + 1 == size else self._no_sync():
            losses = self.precision.forward(self.train_step, batch)
            return self.learn(losses, position, total, samples=self.samples(batch))

    def uncaptured(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        return AccumulatedStep.__call__(self, batch, position, total)

    def group(self, position: int, total: int) -> tuple[int, int]:
        """Return the number of a batch within its group, from 0, and the number of batches in this group."""
        within = position % self.accumulate
        return within, min(self.accumulate, total - (position - within))

    def place(self, samples: int, position: int, total: int) -> GroupPosition:
        """Add a batch to its group, and return its position there; once for each batch."""
        if self.accumulate == 1:
            return GroupPosition(first=True, last=True, size=1)
        within, size = self.group(position, total)
        weight, last = self.by_samples.add(samples, within, size), within + 1 == size
        correction = self.by_samples.correction() if last else None
        assert not isinstance(weight, Tensor)
        assert not isinstance(correction, Tensor)
        return GroupPosition(within == 0, last, self.by_samples.size, weight, correction)

    def learn(
        self,
        losses: Losses,
        position: int,
        total: int,
        inputs: Sequence[Tensor] | None = None,
        samples: int = 1,
    ) -> dict[str, Tensor]:
        place = self.place(samples, position, total)
        outputs = self.backward(losses, place, inputs)
        return outputs | self._update() if place.last else outputs

    def backward(
        self, losses: Losses, place: GroupPosition, inputs: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Add the gradients of a batch to those of its group; after the last batch, they are those of the mean over the
        group."""
        loss = total_loss(losses, stacked=self.stacked)
        weight: Tensor | float | None = place.weight
        correction: Tensor | float | None = place.correction
        items = None if place.alone or self.by == "batches" else items_of(losses, loss)
        if items is not None:
            weight = self.by_items.add(items, 0 if place.first else 1, place.size)
            self.by_items.size = place.size  # a captured batch has left it unset
            correction = self.by_items.correction() if place.last else None
        self.precision.backward(loss, inputs, place.size, weight)
        if correction is not None:
            multiply([parameter.grad for parameter in self.parameters], correction)
        return self.outputs(losses, loss)

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        self.by_items.keep(index)

    def group_state(self, pending: bool, member: int | None = None) -> dict[str, Any]:
        """Return how batches are weighted, and the state of the group, if one is pending (in a stack, of a member)."""
        return {
            "by": self.by,
            "accumulate": self.accumulate,
            "samples": self.by_samples.state_dict() if pending else None,
            "items": self.by_items.state_dict(member) if pending else None,
        }

    def load_group_state(self, state: dict[str, Any], member: int | None = None, members: int = 1) -> None:
        """Load the result of `group_state` from the state of a step; a step of another kind has no such state.

        A group that was started with another weight continues as if its batches so far had the weight of the next one.
        A run that started with equal weights of all batches continues with equal weights.
        """
        group = state.get("group")
        if state.get("gradients") is None:
            self.by_samples.start()
            self.by_items.start()
        if group is not None and group["by"] == self.by:
            device = self.parameters[0].device
            self.by_samples.load_state_dict(group["samples"], device)
            self.by_items.load_state_dict(group["items"], device, member, members)
        elif group is None and "gradients" in state and self.by != "batches":
            log.info("The checkpoint comes from a run with equally weighted batches: using accumulate_by=batches.")
            self.by = "batches"

    def state_dict(self) -> dict[str, Any]:
        gradients = [parameter.grad for parameter in self.parameters]
        pending = any(gradient is not None for gradient in gradients)
        return {**super().state_dict(), "gradients": gradients if pending else None, "group": self.group_state(pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.load_group_state(state)
        for parameter, gradient in zip(self.parameters, state.get("gradients") or [], strict=False):
            parameter.grad = None if gradient is None else like(gradient.to(parameter.device, copy=True), parameter)


def make_step(
    train_step: Callable[[Any], Losses],
    optimizer: Optimizer,
    *,
    precision: Precision,
    clip: NoClip,
    accumulate: int,
    by: str = "items",
    samples: Callable[[Any], int] = batches.samples,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
    stacked: bool = False,
) -> Step:
    """Return the step for these settings; see `AccumulatedStep`.

    Raises:
        ConfigError: `accumulate` is not an integer of at least 1, or `by` is neither "items" nor "batches".
    """
    accumulate = integer("accumulate", accumulate, at_least=1)
    choice("accumulate_by", by, BY)
    if accumulate == 1:
        return Step(train_step, optimizer, precision, clip, by=by, samples=samples, stacked=stacked)
    return AccumulatedStep(
        train_step,
        optimizer,
        precision,
        clip,
        accumulate=accumulate,
        by=by,
        samples=samples,
        no_sync=no_sync,
        stacked=stacked,
    )
