"""Groups of batches for one optimizer step, and the weights of their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainyard._torch_internals import foreach
from trainyard.batch import ITEMS
from trainyard.distributed.shares import local

BY = ("items", "batches")
"""Weight of a batch in a group: its items (`num_items`, otherwise its samples), or 1 for every batch."""

Weight = float | Tensor | None
"""A factor; None means 1, which needs no operation."""


class GroupPosition(NamedTuple):
    """Position of a batch in its group of `size` batches, after which the optimizer steps.

    Attributes:
        weight: the weight of the batch relative to that of the first batch in the group.
        correction: the factor of the gradients after the last batch.
    """

    first: bool
    last: bool
    size: int
    weight: float | None = None
    correction: float | None = None

    @property
    def alone(self) -> bool:
        return self.first and self.last


class GroupWeights:
    """Weights of the batches of a group, whose gradients become their weighted mean.

    The gradients of a batch are added with the factor `weight / size`, where `weight` is its number of items divided by
    that of the first batch, and `size` is the expected number of batches in the group. After the last batch, when the
    number of items is known, the gradients are multiplied by a correction. In a group of the expected size with batches
    of equal weight, both are 1.

    The numbers of items are plain numbers, or tensors on the device: `[]`, or `[K]` for a stack. Tensors are updated in
    place, so that a captured step can add to them.

    Attributes:
        size: the expected size at the start of the group.
    """

    def __init__(self) -> None:
        self.size = 0
        self._starts = False
        self._unit: float | Tensor | None = None
        self._sum: float | Tensor = 0.0

    def add(self, items: float | Tensor, within: int, size: int) -> Weight:
        """Add a batch and return its weight.

        If the first batches of a group are unknown, they get the weight of this batch.

        Args:
            items: the number of items of the batch.
            within: its number within the group, from 0.
            size: the expected number of batches in the group.
        """
        within = 0 if self._starts else within
        self._starts = False
        begins = within == 0 or self._unit is None
        if begins:
            self.size = size
        if isinstance(items, Tensor):
            return self._add(items, within, begins=begins)
        if begins or isinstance(self._unit, Tensor):
            self._unit, self._sum = items or 1, items * within
        self._sum += items
        assert self._unit is not None
        return None if items == self._unit else items / self._unit

    def start(self) -> None:
        """Let the next batch start a group, at any position: no gradients of the batches before it are pending."""
        self._starts = True

    def correction(self) -> Weight:
        """Return the factor of the gradients after the last batch."""
        unit, items = self._unit, self._sum
        if isinstance(unit, Tensor) and isinstance(items, Tensor):
            return self.size * unit / torch.where(items > 0, items, 1)
        assert unit is not None
        expected = self.size * unit
        return None if expected == items else expected / (items or 1)

    def _add(self, items: Tensor, within: int, *, begins: bool) -> Tensor:
        if not isinstance(self._unit, Tensor) or self._unit.shape != items.shape or self._unit.dtype != items.dtype:
            self._unit, self._sum = torch.ones_like(items), torch.zeros_like(items)
            begins = True
        assert isinstance(self._sum, Tensor)
        if begins:
            self._unit.copy_(torch.where(items > 0, items, 1))
            self._sum.copy_(items * (within + 1))
        else:
            self._sum.add_(items)
        return items / self._unit

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        if isinstance(self._unit, Tensor) and isinstance(self._sum, Tensor):
            rows = index.to(self._unit.device)
            self._unit, self._sum = self._unit.index_select(0, rows), self._sum.index_select(0, rows)

    def state_dict(self, member: int | None = None) -> dict[str, Any] | None:
        """Return the state (in a stack, of a member); None if no batch has been added yet."""
        if self._unit is None:
            return None
        state = {"size": self.size, "unit": self._unit, "sum": self._sum}
        return {key: _of(value, member) for key, value in state.items()}

    def load_state_dict(
        self, state: dict[str, Any] | None, device: torch.device, member: int | None = None, members: int = 1
    ) -> None:
        """Load the result of `state_dict`.

        Args:
            state: the result of `state_dict`.
            device: the device of the parameters.
            member, members: in a stack, the index of the member and the number of members.
        """
        if state is None:
            return
        self.size = state["size"]
        for name in ("unit", "sum"):
            value = state[name]
            if isinstance(value, Tensor):
                own = value.to(device, copy=True)
                if member is not None:
                    rows = getattr(self, f"_{name}")
                    if not isinstance(rows, Tensor):
                        rows = own.repeat(members)
                    rows[member] = own
                    own = rows
                value = own
            setattr(self, f"_{name}", value)


def _of(value: Any, member: int | None) -> Any:
    return value[member] if isinstance(value, Tensor) and value.ndim and member is not None else value


def items_of(losses: Any, loss: Tensor) -> Tensor | None:
    """Return the `num_items` that a model returned in addition to its losses, for each loss; None if there are none.

    Args:
        losses: the result of the model.
        loss: their sum, `[]` or `[K]`.
    """
    items = losses.get(ITEMS)
    if items is None:
        return None
    dtype = torch.promote_types(loss.dtype, torch.float32)
    if not isinstance(items, Tensor):
        return torch.full_like(loss, float(items), dtype=dtype, requires_grad=False)
    return items.detach().to(loss.device, dtype).reshape(loss.shape)


def multiply(gradients: Sequence[Tensor | None], factor: float | Tensor) -> None:
    """Multiply gradients in place by a factor, or in a stack by the factor of each member, `[K]`."""
    own = [local(gradient) for gradient in gradients if gradient is not None]
    if not own:
        return
    with torch.no_grad():
        if isinstance(factor, Tensor) and factor.ndim:
            foreach.mul_(own, [factor.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1)) for grad in own])
        else:
            foreach.mul_(own, factor)


def means(outputs: Sequence[Mapping[str, Tensor]], weights: Sequence[float | Tensor | None]) -> dict[str, Tensor]:
    """Return the mean of each number over the steps that have it.

    If the batches differ in weight, a number of the model is weighted by its batch; a gradient norm, which only an
    optimizer step has, is not weighted.

    Args:
        outputs: the outputs of the steps, `[]` or `[K]` each.
        weights: the weights of their batches, numbers or tensors of the same form; if one is None, all are treated as
            equal.
    """
    columns: dict[str, list[tuple[Tensor, Any]]] = {}
    for numbers, weight in zip(outputs, weights, strict=True):
        for key, number in numbers.items():
            columns.setdefault(key, []).append((number, weight))
    equal = None in {None if weight is None else 1 for weight in weights} or (
        not any(isinstance(weight, Tensor) for weight in weights) and len(set(weights)) == 1
    )
    found = {}
    for key, column in columns.items():
        values = torch.stack([value for value, _ in column])
        values = values if values.is_floating_point() else values.double()  # counts
        if equal or key.endswith("grad_norm") or key == ITEMS:
            found[key] = values.mean(0)
        else:
            found[key] = _weighted_mean(values, [weight for _, weight in column])
    return found


def _weighted_mean(values: Tensor, weights: Sequence[float | Tensor]) -> Tensor:
    """Return the mean over the first axis; a value with weight 0 may be NaN."""
    if any(isinstance(weight, Tensor) for weight in weights):
        own = torch.stack(
            [torch.as_tensor(weight, device=values.device).expand(values.shape[1:]) for weight in weights]
        )
    else:
        own = torch.tensor(weights, device=values.device).view(-1, *[1] * (values.ndim - 1))
    own = own.double()
    return (torch.where(own > 0, values * own, 0).sum(0) / own.sum(0)).to(values.dtype)
