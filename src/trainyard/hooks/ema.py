"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

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

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigError("decay", decay, "a number from 0 up to, but not including, 1")
        self.decay = decay
        self._average: AveragedModel | None = None
        self._updates = 0

    def before_train(self, runner: Runner) -> None:
        self._averaged(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        assert self._average is not None
        self._average.update_parameters(runner.model)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        average = self._averaged(runner)
        checkpoint["eval_model"] = average.module.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if "eval_model" in checkpoint:
            average = self._averaged(runner)
            average.module.load_state_dict(checkpoint["eval_model"])
            average.n_averaged.fill_(self._updates)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": 0 if self._average is None else int(self._average.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._updates = int(state["updates"])

    def _averaged(self, runner: Runner) -> AveragedModel:
        if self._average is None:
            self._average = AveragedModel(
                runner.model,
                multi_avg_fn=get_ema_multi_avg_fn(self.decay),  # type: ignore[no-untyped-call]
            )
            runner.eval_model = self._average.module
        return self._average
