"""Hyperparameters of an optimizer on the device, from which a captured step reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from trainyard._torch_internals import may_have_step_hooks
from trainyard.optim import Lion, fused_steps
from trainyard.step.cuda_graph.rate_table import Foresight, RateTable

CAPTURABLE = (Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Lion)
"""Classes that, with `foreach` or `fused`, read their learning rate and steps from the device."""
CAPTURABLE_FUSED = (SGD, Adagrad, fused_steps.SGD, fused_steps.Adagrad)
"""Classes that do so only with `fused=true`."""
COUNTS = ("step", "mu_product")
"""States of a parameter that torch keeps on the CPU unless the optimizer is `capturable`."""


class GraphHyperparameters(Protocol):
    """Interface of an optimizer's hyperparameters that a captured step uses."""

    def refresh(self) -> None:
        """Copy the numbers that have changed to the device; called before every step."""

    def take(self) -> None:
        """Record the current numbers, for the comparison in `changed`."""

    def changed(self) -> str | None:
        """Return the name of a changed number that a captured step cannot follow; None if there is none."""

    def advance(self) -> None:
        """Read the numbers of this step on the device, in every step; a captured step repeats this."""

    def stepped(self) -> None:
        """Mark the step for which `refresh` was called, and its `advance`, as complete."""

    def placed(self) -> AbstractContextManager[None]:
        """Return a context in which the optimizer uses the numbers on the device."""

    def release(self) -> None:
        """Release the prepared state, because no more steps will be captured."""


@runtime_checkable
class OnDevice(Protocol):
    """Protocol of an optimizer whose step reads all hyperparameters from the device and can be captured directly."""

    def graph_hyperparameters(self, foresight: Foresight | None) -> GraphHyperparameters:
        """Return these hyperparameters; `foresight` returns those of the next steps."""


class TorchGraphHyperparameters:
    """Hyperparameters of one of torch's optimizers, or of `Lion`.

    In the parameter groups, they are plain numbers, which schedules write and checkpoints contain. Only while the
    optimizer steps, the learning rate is a zero-dimensional tensor and `capturable` is on. The tensor is filled before
    the step if the rate has changed; or, if the next rates are known, by the step itself from a table.

    Args:
        optimizer: an optimizer for which `uncaptured_update` returns None.
        device: the device of the parameters.
        foresight: the function of a schedule that changes the learning rate with every step.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device, foresight: Foresight | None = None) -> None:
        self._optimizer = optimizer
        self._device = device
        self._foresight = foresight
        self._table: RateTable | None = None
        self._state: Any = None
        self._taken: list[Any] = []
        self._rates: list[Tensor] = []

    def refresh(self) -> None:
        groups = self._optimizer.param_groups
        if self._optimizer.state is not self._state or len(groups) != len(self._rates):
            self._adopt()
        if self._table is not None:
            self._table.refresh([group["lr"] for group in groups])
            return
        for index, group in enumerate(groups):
            if group["lr"] != self._seen[index]:
                self._seen[index] = group["lr"]
                self._rates[index].fill_(group["lr"])  # the number is an argument of the kernel: nothing waits

    def take(self) -> None:
        self._taken = self._fixed()
        self._taken_state = self._optimizer.state

    def changed(self) -> str | None:
        if self._optimizer.state is not self._taken_state:
            return "the optimizer's state"
        found = self._fixed()
        if found == self._taken:
            return None
        return next((key for (_, key), a, b in zip(self._keys, found, self._taken, strict=False) if a != b), "optim")

    def advance(self) -> None:
        if self._table is not None:
            self._table.advance()

    def stepped(self) -> None:
        if self._table is not None:
            self._table.stepped()

    @contextmanager
    def placed(self) -> Iterator[None]:
        before = [(group, group["lr"], group.get("capturable")) for group in self._optimizer.param_groups]
        for (group, _, capturable), rate in zip(before, self._rates, strict=True):
            group["lr"] = rate
            if capturable is not None:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, lr, capturable in before:
                group["lr"] = lr
                if capturable is not None:
                    group["capturable"] = capturable

    def release(self) -> None:
        for group in self._optimizer.param_groups:
            if not (group.get("fused") or group.get("capturable")):
                self._move(group["params"], torch.device("cpu"))
        self._state = None

    def _adopt(self) -> None:
        """Use the current groups and state; the step counts are moved to the device."""
        groups = self._optimizer.param_groups
        self._state = self._optimizer.state
        self._keys = [(group, key) for group in groups for key in group if key not in ("params", "lr")]
        self._seen: list[Any] = [None] * len(groups)
        # torch's fused kernels read a float; foreach uses its fast path if the dtypes are equal.
        exact = [group["params"][0].dtype == torch.float64 and not group.get("fused") for group in groups]
        dtypes = [torch.float64 if double else torch.float32 for double in exact]
        if self._foresight is None:
            self._rates = [torch.zeros((), dtype=dtype, device=self._device) for dtype in dtypes]
        else:
            self._table = RateTable(dtypes, self._device, self._foresight)
            self._rates = self._table.rates
        for group in groups:
            self._move(group["params"], self._device)

    def _move(self, params: list[Tensor], device: torch.device) -> None:
        for param in params:
            state = self._optimizer.state.get(param, {})
            state.update({name: state[name].to(device) for name in COUNTS if isinstance(state.get(name), Tensor)})

    def _fixed(self) -> list[Any]:
        return [group.get(key) for group, key in self._keys]


def graph_hyperparameters(
    optimizer: Optimizer, device: torch.device, foresight: Foresight | None = None
) -> GraphHyperparameters:
    """Return the hyperparameters of an optimizer for which `uncaptured_update` returns None."""
    if isinstance(optimizer, OnDevice):
        return optimizer.graph_hyperparameters(foresight)
    return TorchGraphHyperparameters(optimizer, device, foresight)


def uncaptured_update(optimizer: Optimizer) -> str | None:
    """Return why the steps of this optimizer cannot be captured; None if they can."""
    if isinstance(optimizer, OnDevice):
        return None
    kind = type(optimizer)
    if kind not in (*CAPTURABLE, *CAPTURABLE_FUSED):
        return f"{kind.__name__} is not known to support capture"
    if may_have_step_hooks(optimizer):
        return "the optimizer has step hooks, or may have some because fast paths are off"
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            return "optim.differentiable is on"
        if isinstance(group["lr"], Tensor):
            return "optim.lr is a tensor"
        if kind in CAPTURABLE_FUSED and not group["fused"]:
            return f"{kind.__name__} reads its learning rate from the device only with optim.fused=true"
        if group["foreach"] is False and not group.get("fused"):
            return "optim.foreach is off"
    return None
