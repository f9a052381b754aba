"""Steps whose gradients are no finite numbers are not taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainyard.distributed.shares import local
from trainyard.optim import without_dynamo
from trainyard.step.precision import ScaledAutocast
from trainyard.step.stacked import StackedScaledAutocast


class SkipNonFinite:
    """Stands before the precision of a step, and takes the step only where every gradient is finite.

    A skipped step leaves parameters and the optimiser's state as they are. Of several members each skips its own. The
    scaler of `fp16` skips by itself; here its skipped steps are counted.

    Args:
        precision: the `Precision` of the run's step; whatever is not about skipping goes to it.
        stacked: the parameters are stacks `[K, ...]`.
        skipped: int64 `[K]` (`[1]` of a solo run), steps skipped so far; counted up in place.
        agree: of several ranks, says whether any has found a gradient that is not finite.
    """

    def __init__(
        self, precision: Any, *, stacked: bool, skipped: Tensor, agree: Callable[[bool], bool] | None = None
    ) -> None:
        self._precision = precision
        self._stacked = stacked
        self._scales = isinstance(precision, ScaledAutocast | StackedScaledAutocast)
        self.skipped = skipped
        self._agree = agree

    def __getattr__(self, name: str) -> Any:
        return getattr(self._precision, name)

    @torch.no_grad()
    def step(self, optimizer: Optimizer, unwrapped_step: Callable[[], None]) -> None:
        """One step; alone, it waits for the device, which has to say whether there is one."""
        bad = self._bad(optimizer)
        if self._agree is not None:
            bad.fill_(self._agree(bool(bad.any())))
        self.skipped += bad
        if self._scales:
            self._precision.step(optimizer, unwrapped_step)
        elif self._stacked:
            without_dynamo.method(optimizer, "step")(skip=bad)
        elif not bad.any():
            self._precision.step(optimizer, unwrapped_step)

    def _bad(self, optimizer: Optimizer) -> Tensor:
        """Whether a gradient of a member is not finite, bool `[K]`: it shows in the greatest or the least number."""
        grads = [local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        rows = [grad.reshape(len(self.skipped), -1) for grad in grads if grad.numel()]
        if not rows:
            return torch.zeros_like(self.skipped, dtype=torch.bool)
        ends = torch.stack([end.float() for row in rows for end in torch.aminmax(row, dim=1)])
        return ~ends.isfinite().all(0)
