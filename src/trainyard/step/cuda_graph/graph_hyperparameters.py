"""Hyperparameters of an optimizer on the device, where a captured step reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from trainyard._torch_internals import may_have_step_hooks
from trainyard.optim import Lion
from trainyard.step.cuda_graph.rate_table import Foresight, RateTable

CAPTURABLE = (Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Lion)
"""Classes that, all parameters at once (`foreach` or `fused`), read their learning rate and steps from the device."""
CAPTURABLE_FUSED = (SGD, Adagrad)
"""Classes that do so with `fused=true` alone."""
COUNTS = ("step", "mu_product")
"""What of a parameter's state torch keeps on the CPU unless it is told that a step will be captured."""


class GraphHyperparameters(Protocol):
    """What a captured step asks of an optimizer's hyperparameters."""

    def refresh(self) -> None:
        """Bring the numbers that have changed to the device; before every step."""

    def take(self) -> None:
        """From here on `changed` compares with the numbers as they stand."""

    def changed(self) -> str | None:
        """What a captured step cannot follow: the name of a number that stays as it was captured; None: nothing."""

    def advance(self) -> None:
        """Of every step, on the device: take the numbers of this step; what is captured repeats it."""

    def stepped(self) -> None:
        """The step that `refresh` was for is through, and `advance` with it."""

    def placed(self) -> AbstractContextManager[None]:
        """Inside the block the optimiser steps by the numbers on the device."""

    def release(self) -> None:
        """No step will be captured any more."""


@runtime_checkable
class OnDevice(Protocol):
    """An optimizer whose step reads all hyperparameters from the device: it can be captured as it is."""

    def graph_hyperparameters(self) -> GraphHyperparameters:
        """Those hyperparameters."""


class TorchGraphHyperparameters:
    """The hyperparameters of one of torch's optimizers, or of `Lion`.

    In the parameter groups they are plain numbers at all times, which schedules write and checkpoints hold. Only while
    the optimiser steps is the learning rate a tensor of no dimension, and `capturable` on. It is filled before the step
    where the rate has changed; or, where the rates to come are foreseen, by the step itself from a table.

    Args:
        optimizer: one for which `uncaptured_update` gives None.
        device: of the parameters.
        foresight: of a schedule that changes the learning rate with every step.
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
                self._rates[index].fill_(group["lr"])  # the number travels with the kernel: nothing waits

    def take(self) -> None:
        self._taken = self._fixed()
        self._taken_state = self._optimizer.state

    def changed(self) -> str | None:
        if self._optimizer.state is not self._taken_state:
            return "the optimiser's state"
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
        """Take the groups and the state as they are now: the counts of steps go to the device."""
        groups = self._optimizer.param_groups
        self._state = self._optimizer.state
        self._keys = [(group, key) for group in groups for key in group if key not in ("params", "lr")]
        self._seen: list[Any] = [None] * len(groups)
        # torch's fused kernels read a float; foreach takes its fast path where the dtypes are equal.
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
    """The hyperparameters of an optimizer for which `uncaptured_update` gives None."""
    if isinstance(optimizer, OnDevice):
        return optimizer.graph_hyperparameters()
    return TorchGraphHyperparameters(optimizer, device, foresight)


def uncaptured_update(optimizer: Optimizer) -> str | None:
    """Why the steps of this optimizer cannot be captured; None where they can."""
    if isinstance(optimizer, OnDevice):
        return None
    kind = type(optimizer)
    if kind not in (*CAPTURABLE, *CAPTURABLE_FUSED):
        return f"{kind.__name__} is not known to read its numbers from the device"
    if may_have_step_hooks(optimizer):
        return "hooks are registered on the optimiser, or may be, as fast paths are off"
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            return "optim.differentiable is on"
        if isinstance(group["lr"], Tensor):
            return "optim.lr is a tensor"
        if kind in CAPTURABLE_FUSED and not group["fused"]:
            return f"{kind.__name__} reads its learning rate from the device with fused=true only"
        if group["foreach"] is False and not group.get("fused"):
            return "optim.foreach is off"
    return None
