"""Hooks and schedulers of a LightningModule, at the stages of a run."""

from __future__ import annotations

from typing import Any

from trainyard.errors import ConfigError, TrainyardError
from trainyard.models.lightning import Lightning
from trainyard.models.lightning.configured import KEY, Scheduled
from trainyard.models.lightning.recorder import PREFIXES, name_in
from trainyard.runner.hook import Hook


class LightningHooks(Hook):
    """Calls the hooks that a LightningModule overrides, and steps the schedulers of its `configure_optimizers`.

    The model adds this hook, so the hook is in no config. As in Lightning, a scheduler is stepped after every
    `frequency`-th epoch or optimizer step. A scheduler by epoch that reads a result is stepped after the validation.

    Args:
        model: the module's model.

    Attributes:
        config_key: the part of the config that has the arguments in `monitors`.
    """

    priority = "HIGH"
    ranks = "one"
    config_key = KEY

    def __init__(self, model: Lightning) -> None:
        self.model = model
        self._loaded: list[dict[str, Any]] = []

    @property
    def monitors(self) -> dict[str, str]:
        """The results that schedulers read, each with the argument that names the result."""
        return {monitored(each): "monitor" for each in self.model.schedulers if each.monitor is not None}

    def sanity_check(self, runner: Any) -> None:
        schedule = vars(runner).get("schedule")
        if self.model.schedulers and schedule is not None and not schedule.constant:
            raise TrainyardError(
                f"schedule: {KEY} creates schedulers, whose learning rates a second schedule would overwrite. "
                f"Use schedule=constant, or another optimizer such as optim=adam with a schedule of your choice."
            )

    # -- training ------------------------------------------------------------------------------------------------------

    def before_train(self, runner: Any) -> None:
        for scheduled, state in zip(self.model.schedulers, self._loaded, strict=False):
            scheduled.scheduler.load_state_dict(state)
        self._loaded = []
        self._call(runner, "on_fit_start", "on_train_start")

    def before_train_epoch(self, runner: Any) -> None:
        self.model.facts.epoch_of_batches = runner.epoch
        if not runner.batches_done:
            self._call(runner, "on_train_epoch_start")

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        self.model.batch_idx = batch_idx
        self._record(runner, self.model.call_hook("on_train_batch_start", data_batch, batch_idx).numbers())

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self._record(runner, self.model.call_hook("on_train_batch_end", outputs, data_batch, batch_idx).numbers())
        accumulate = runner.settings["accumulate"]
        if runner.iter % accumulate == 0:
            for each in self.model.schedulers:
                if each.interval == "step" and (runner.iter // accumulate) % each.frequency == 0:
                    self._step(runner, each)

    def after_train_epoch(self, runner: Any) -> None:
        self._call(runner, "on_train_epoch_end")
        for each in self.model.schedulers:
            if each.interval == "epoch" and (each.monitor is None or not runner.train_loop.val_due):
                self._step_epoch(runner, each)

    def after_train(self, runner: Any) -> None:
        self.model.facts.epoch_of_batches = None
        self._call(runner, "on_train_end", "on_fit_end")
        self.model.call_hook("teardown", stage="fit")

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def before_val(self, runner: Any) -> None:
        if runner.training and not runner.batches_done:  # a resumed run may begin with a validation
            self.model.facts.epoch_of_batches = max(0, runner.epoch - 1)
        self.model.call_hook("on_validation_start", split="val")

    def before_val_epoch(self, runner: Any) -> None:
        self.model.call_hook("on_validation_epoch_start", split="val")

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        self._place(runner, "val", batch_idx)

    def after_val_epoch(self, runner: Any, metrics: Any) -> None:
        if runner.training:
            for each in self.model.schedulers:
                if each.interval == "epoch" and each.monitor is not None:
                    self._step_epoch(runner, each)

    def after_val(self, runner: Any) -> None:
        self.model.call_hook("on_validation_end", split="val")

    def before_test(self, runner: Any) -> None:
        self.model.call_hook("on_test_start", split="test")

    def before_test_epoch(self, runner: Any) -> None:
        self.model.call_hook("on_test_epoch_start", split="test")

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        self._place(runner, "test", batch_idx)

    def after_test(self, runner: Any) -> None:
        self.model.call_hook("on_test_end", split="test")

    # ------------------------------------------------------------------------------------------------------------------

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        schedulers = [each.scheduler.state_dict() for each in self.model.schedulers]
        return {"schedulers": schedulers} if schedulers else {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._loaded = state["schedulers"]

    def _place(self, runner: Any, split: str, batch_idx: int) -> None:
        loop = runner.val_loop if split == "val" else runner.test_loop
        for model in (self.model, runner.eval_model):
            model.batch_idx, model.dataloader_idx = batch_idx, runner.sets(split).index(loop.current)

    def _call(self, runner: Any, *names: str) -> None:
        for name in names:
            self._record(runner, self.model.call_hook(name).numbers())

    def _record(self, runner: Any, numbers: dict[str, Any]) -> None:
        if numbers:
            values = {f"train/{name}": float(value) for name, value in numbers.items()}
            runner.members[0].record(values, step=runner.iter, epoch=runner.epoch)

    def _step_epoch(self, runner: Any, scheduled: Scheduled) -> None:
        if runner.epoch % scheduled.frequency == 0:
            self._step(runner, scheduled)

    def _step(self, runner: Any, scheduled: Scheduled) -> None:
        if scheduled.monitor is None:
            scheduled.scheduler.step()
            return
        name = monitored(scheduled)
        if name in runner.members[0].metrics:  # before the first validation there is none
            scheduled.scheduler.step(runner.members[0].metrics[name])


def monitored(scheduled: Scheduled) -> str:
    """Return the name of the result that a scheduler reads.

    Raises:
        ConfigError: it is a result of the training.
    """
    monitor = scheduled.monitor or ""
    if monitor.startswith(PREFIXES["train"]):
        raise ConfigError(f"{KEY}.monitor", monitor, "a result of the validation, such as val_loss")
    return f"val/{name_in('val', monitor)}"
