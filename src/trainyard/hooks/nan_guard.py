"""NaN guard: stop a training whose loss is not finite, or skip the steps whose gradients are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainyard.checks import choice, integer
from trainyard.distributed.shares import local
from trainyard.optim import without_dynamo
from trainyard.runner import Member, Runner, read
from trainyard.runner.hook import Hook
from trainyard.step.precision import ScaledAutocast
from trainyard.step.stacked import StackedScaledAutocast


class NaNGuard(Hook):
    """Ends a member as failed once its loss is NaN or infinite, or skips each step whose gradients are.

    Before each checkpoint it looks at the weights too, since a finite loss may have had gradients that were not: no
    checkpoint holds a weight that is not a number.

    Args:
        interval: iterations between two looks at the loss; each waits for the device.
        action: `stop`, or `skip`: a step whose gradients are not all finite is not taken, and the training goes on;
            `train/skipped` counts them.
    """

    priority = "HIGH"
    stackable = True

    def __init__(self, interval: int = 10, action: str = "stop") -> None:
        self.interval = integer("interval", interval, at_least=1)
        self.action = choice("action", action, ("stop", "skip"))
        self._loss: Tensor | None = None
        self._guards: list[SkipNonFinite] = []
        self._loaded: dict[int, int] = {}

    def before_train(self, runner: Runner) -> None:
        if self.action != "skip" or self._guards:
            return
        counts = [self._loaded.get(index, 0) for index in range(len(runner.members))]
        skipped = torch.tensor(counts, device=runner.device)
        agree = runner.strategy.agree if runner.strategy.world_size > 1 else None
        steps: dict[str, Any] = getattr(runner.step, "steps", {"": runner.step})  # one for each of several optimisers
        for step in steps.values():
            step.precision = SkipNonFinite(step.precision, stacked=runner.stacked, skipped=skipped, agree=agree)
            self._guards.append(step.precision)
        gauges: dict[str, Any] = runner.gauges
        gauges["skipped"] = self._skipped

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        self._loss = outputs["loss"]
        if runner.iter % self.interval == 0:
            self._look(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        self._look(runner)

    def after_train(self, runner: Runner) -> None:
        self._look(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any], member: Member) -> None:
        self._look(runner)
        finite = [local(parameter).isfinite().all() for parameter in member.model.parameters()]
        not_finite = bool(finite) and not torch.stack(finite).all()
        if runner.strategy.agree(not_finite) and not member.failed:
            member.stop(f"a weight is no finite number after iteration {runner.iter}", failed=True)

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"skipped": int(self._guards[0].skipped[member])} if self._guards else {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._loaded[member] = state["skipped"]

    def keep(self, members: Sequence[int]) -> None:
        if self._loss is not None:
            self._loss = self._loss[list(members)]
        if self._guards:
            kept = self._guards[0].skipped[list(members)]
            for guard in self._guards:
                guard.skipped = kept

    def _skipped(self) -> list[float]:
        """Return for each member the steps that were skipped so far."""
        return [float(count) for count in self._guards[0].skipped.tolist()]

    def _look(self, runner: Runner) -> None:
        if self._loss is None or self._guards:
            return
        losses = runner.strategy.mean({"loss": self._loss})
        for member, values in zip(runner.members, read(losses, len(runner.members)), strict=True):
            if not math.isfinite(values["loss"]) and not member.failed:
                member.stop(f"the loss is {values['loss']} at iteration {runner.iter}", failed=True)


class SkipNonFinite:
    """Stands before the precision of a step, and takes the step only where every gradient is finite.

    A skipped step leaves parameters and the optimizer's state as they are. Of several members each skips its own. The
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
        """Take one step; for one member, wait for the device to say whether it is to be taken."""
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
        """Return whether a gradient of each member is not finite, bool `[K]`, by its greatest and least number."""
        grads = [local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        rows = [grad.reshape(len(self.skipped), -1) for grad in grads if grad.numel()]
        if not rows:
            return torch.zeros_like(self.skipped, dtype=torch.bool)
        ends = torch.stack([end.float() for row in rows for end in torch.aminmax(row, dim=1)])
        return ~ends.isfinite().all(0)
