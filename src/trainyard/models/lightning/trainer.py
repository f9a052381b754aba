"""Substitute for Lightning's Trainer: the properties of a run that a LightningModule reads."""

from __future__ import annotations

from typing import Any

from trainyard.errors import TrainyardError


class TrainerAttributeError(TrainyardError, AttributeError):
    """The trainer has no attribute of this name; `hasattr` and the default of `getattr` apply to it."""


class TrainerFacts:
    """Properties of a run that a LightningModule reads from `self.trainer`.

    Args:
        runner: a Runner, or its parts before it exists; None without a run.

    Attributes:
        epoch_of_batches: the epoch of the latest batches, because Lightning increments its counter only after the
            validation; None if there were no batches.
    """

    def __init__(self, runner: Any = None) -> None:
        self._runner = runner
        self.sanity_checking = False
        self.progress_bar_callback = None
        self.epoch_of_batches: int | None = None
        self.logger = None
        self.loggers: list[Any] = []
        self.world_size = self.num_devices = self.num_nodes = 1
        self.global_rank = self.local_rank = 0
        self.is_global_zero = True

    @property
    def current_epoch(self) -> int:
        return int(getattr(self._runner, "epoch", 0)) if self.epoch_of_batches is None else self.epoch_of_batches

    @property
    def global_step(self) -> int:
        """Number of completed steps of the optimizer."""
        return int(getattr(self._runner, "iter", 0)) // self.accumulate_grad_batches

    @property
    def accumulate_grad_batches(self) -> int:
        return 1 if self._runner is None else int(self._runner.settings["accumulate"])

    @property
    def max_epochs(self) -> int | None:
        return None if self._runner is None else self._runner.train_loop.max_epochs(self._runner)

    @property
    def max_steps(self) -> int:
        length = None if self._runner is None else self._runner.train_loop.max_iters(self._runner)
        return -1 if length is None else -(-length // self.accumulate_grad_batches)

    @property
    def estimated_stepping_batches(self) -> int:
        """Number of steps of the optimizer in the entire run.

        Raises:
            TrainyardError: the length of the run is unknown.
        """
        if self._runner is None:
            raise TrainyardError(
                "trainer.estimated_stepping_batches: the length of the run is not known in configure_model and "
                "setup(stage='fit'). Read it in configure_optimizers."
            )
        if self.max_steps < 0:
            raise TrainyardError(
                "trainer.estimated_stepping_batches: the length of the run is unknown, because the data has "
                "no length. Use loop=iter with loop.max_iters."
            )
        return self.max_steps

    @property
    def num_training_batches(self) -> float:
        found = None if self._runner is None else getattr(self._runner.loader("train"), "exact_length", None)
        return float("inf") if found is None else found

    @property
    def training(self) -> bool:
        return bool(getattr(self._runner, "training", False))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        own = {*dir(type(self)), *vars(self)} - {"epoch_of_batches"}
        known = sorted(each for each in own if not each.startswith("_"))
        raise TrainerAttributeError(
            f"self.trainer.{name}: in Trainyard, the trainer of a LightningModule has only {', '.join(known)}."
        )
