"""NaN guard hook: ends a training whose loss is not finite, or skips steps with non-finite gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    """Ends a member as failed when its loss is NaN or infinite, or skips each step with non-finite gradients.

    Before each checkpoint, the hook also checks the weights, because a finite loss may have non-finite gradients. No
    checkpoint therefore contains a NaN weight.

    Args:
        interval: iterations between two checks of the loss; each check waits for the device.
        action: `stop`: end the member; `skip`: skip a step whose gradients are not all finite, and continue the
            training; `train/skipped` counts these steps.
    """

    priority = "HIGH"
    stackable = True
    own_places = own_epochs = True

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
        steps: dict[str, Any] = getattr(runner.step, "steps", {"": runner.step})  # one per optimizer
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

    def before_leave(self, runner: Runner, leaving: Sequence[int]) -> None:
        self._look(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any], member: Member) -> None:
        self._look(runner)
        finite = [local(parameter).isfinite().all() for parameter in member.model.parameters()]
        not_finite = bool(finite) and not torch.stack(finite).all()
        if runner.strategy.agree(not_finite) and not member.failed:
            member.stop(f"a weight is not finite after iteration {member.iter}", failed=True)

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"skipped": int(self._guards[0].skipped[member])} if self._guards else {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._loaded[member] = state["skipped"]
        if self._guards:
            self._guards[0].skipped[member] = state["skipped"]  # which all guards share

    def refill(self, runner: Runner, members: Mapping[int, Hook | None]) -> None:
        if self._guards:
            self._guards[0].skipped[[*members]] = 0

    def keep(self, members: Sequence[int]) -> None:
        if self._loss is not None:
            self._loss = self._loss[list(members)]
        if self._guards:
            kept = self._guards[0].skipped[list(members)]
            for guard in self._guards:
                guard.skipped = kept

    def _skipped(self) -> list[float]:
        """Return the number of skipped steps of each member so far."""
        return [float(count) for count in self._guards[0].skipped.tolist()]

    def _look(self, runner: Runner) -> None:
        if self._loss is None or self._guards:
            return
        losses = runner.strategy.mean({"loss": self._loss})
        for member, values in zip(runner.members, read(losses, len(runner.members)), strict=True):
            if not math.isfinite(values["loss"]) and not member.failed:
                member.stop(f"the loss is {values['loss']} at iteration {member.iter}", failed=True)


class SkipNonFinite:
    """Wraps the precision of a step, and takes the step only if every gradient is finite.

    A skipped step leaves parameters and the optimizer's state unchanged. Several members skip steps independently. The
    scaler of `fp16` skips steps on its own; these steps are also counted here.

    Args:
        precision: the `Precision` of the run's step; everything else is delegated to it.
        stacked: whether the parameters are stacks `[K, ...]`.
        skipped: int64 `[K]` (`[1]` for a single run), the steps skipped so far; incremented in place.
        agree: with several ranks, returns whether any rank has found a non-finite gradient.
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
        """Take one step; for one member, wait for the device to decide whether it is taken."""
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
        """Return for each member whether a gradient is not finite, bool `[K]`, from its maximum and minimum."""
        grads = [local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        rows = [grad.reshape(len(self.skipped), -1) for grad in grads if grad.numel()]
        if not rows:
            return torch.zeros_like(self.skipped, dtype=torch.bool)
        ends = torch.stack([end.float() for row in rows for end in torch.aminmax(row, dim=1)])
        return ~ends.isfinite().all(0)
