"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainyard.errors import ConfigError
from trainyard.hooks.hook import Hook
from trainyard.runner import Runner


class EMA(Hook):
    """Keeps `average = decay * average + (1 - decay) * weights` and evaluates it in place of the weights.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992), with exponential weights;
    torch's `AveragedModel` does the arithmetic. Buffers (BatchNorm's statistics) are taken over as they are. A
    checkpoint holds both: resuming goes on with the weights, `load_from` takes the average.

    Args:
        decay: the share of the average that stays, at every iteration.
    """

    priority = "NORMAL"
    stackable = True

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigError("decay", decay, "a number from 0 up to, but not including, 1")
        self.decay = decay
        self._decays: list[float] | None = None
        self._average: AveragedModel | None = None
        self._updates = 0

    def before_train(self, runner: Runner) -> None:
        self._averaged(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        assert self._average is not None
        self._average.update_parameters(runner.model)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._averaged(runner.whole)
        checkpoint["eval_model"] = runner.eval_model.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if "eval_model" in checkpoint:
            average = self._averaged(runner.whole)
            runner.eval_model.load_state_dict(checkpoint["eval_model"])
            average.n_averaged.fill_(self._updates)

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"updates": 0 if self._average is None else int(self._average.n_averaged)}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._updates = int(state["updates"])

    def stack(self, hooks: Sequence[Hook]) -> None:
        self._decays = [hook.decay for hook in hooks if isinstance(hook, EMA)]

    def keep(self, members: Sequence[int]) -> None:
        if self._decays is not None:
            self._decays = [self._decays[index] for index in members]

    def _averaged(self, runner: Runner) -> AveragedModel:
        if self._average is None:
            one: Any = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
            update: Any = one if self._decays is None else self._lerp
            self._average = AveragedModel(runner.model, multi_avg_fn=update)
            runner.eval_model = self._average.module
        return self._average

    def _lerp(self, averages: Sequence[Tensor], weights: Sequence[Tensor], updates: int) -> None:
        """What torch's average does with one decay, with a decay for each member."""
        shares = torch.tensor(self._decays, dtype=torch.float64).neg_().add_(1)
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                share = shares.to(average.device, average.dtype).view(-1, *[1] * (average.ndim - 1))
                average.lerp_(weight, share)
            else:
                average.copy_(weight)
