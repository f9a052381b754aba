"""A LightningModule as a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainyard.batch import split_target
from trainyard.config.build import locate
from trainyard.errors import ConfigError, FindingError, TrainyardError, counted
from trainyard.models.base import LOGGED, MODES, BaseModel, Preprocessor
from trainyard.models.lightning.checks import accepted_arguments, check_module, overridden
from trainyard.models.lightning.configured import KEY, Configured, Scheduled, parsed
from trainyard.models.lightning.recorder import Evaluated, Recorder
from trainyard.models.lightning.trainer import TrainerFacts

HOOKS = "trainyard.hooks.lightning.LightningHooks"
OF_LOGGERS = (
    "experiment",
    "log_dir",
    "log_hyperparams",
    "log_image",
    "log_metrics",
    "log_table",
    "log_text",
    "save_dir",
)
"""Attributes of a Lightning logger that modules read."""
TURN = "optimizer_idx"
"""Argument of a `training_step` that is called once for each of several optimizers."""
_KINDS = {"val": "validation", "test": "test"}
"""Name of each evaluated split in the names of the module's methods."""


class Lightning(BaseModel):
    """Trains a `LightningModule` without changes: its steps, `configure_optimizers`, logged values and hooks.

    `optim=model` uses the optimizers and schedulers of `configure_optimizers`. `metric=logged` uses the values that
    `validation_step` and `test_step` log. Mode "predict" is the module's `forward`, on a batch without its target.

    Args:
        module: the LightningModule.
        data_preprocessor: see `BaseModel`.

    Attributes:
        batch_idx, dataloader_idx: the indices of the batch of the next step.
        facts: the properties of the run that the module can read.
        schedulers: the schedulers of `configure_optimizers`; empty before its call.

    Raises:
        ConfigError: the module is not a LightningModule, optimizes manually, or overrides a method that Trainyard never
            calls.
    """

    capturable = False
    facts = TrainerFacts()

    def __init__(self, module: nn.Module, data_preprocessor: Preprocessor = None) -> None:
        super().__init__(data_preprocessor)
        self.module = check_module(module)
        self.batch_idx = self.dataloader_idx = 0
        self.schedulers: list[Scheduled] = []
        self.call_hook("configure_model")
        self.call_hook("setup", stage="fit")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copying and pickling, without the run."""
        return {key: value for key, value in self.__dict__.items() if key != "facts"} | {"schedulers": []}

    def attach(self, parts: Any) -> None:
        """Attach the module to a run: it can read properties of the run, and its hooks are called at the run's stages.

        Raises:
            ConfigError: the run is on several devices.
        """
        if parts.strategy.world_size > 1:
            raise ConfigError(
                "strategy", type(parts.strategy).__name__, "single: a LightningModule trains on one device"
            )
        self.__dict__["facts"] = TrainerFacts(parts)
        parts.added_hooks["lightning"] = locate(HOOKS, "hook.lightning")(self)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def train_step(self, batch: Any) -> dict[str, Any]:
        """Return the loss of `training_step`, and its logged values under `logged`."""
        return self._train(self.preprocess(batch))

    @property
    def train_steps(self) -> Any:
        """Function from a batch to the turns of the optimizers, if `training_step` takes `optimizer_idx`."""
        if not self.takes_turns:
            raise AttributeError("train_steps")
        return self._turns

    @property
    def takes_turns(self) -> bool:
        return bool(accepted_arguments(self.module.training_step, {TURN: 0}))

    def val_step(self, batch: Any) -> Evaluated:
        """Return the values that `validation_step` logged."""
        return self._evaluate("val", self.preprocess(batch))

    def test_step(self, batch: Any) -> Evaluated:
        """Return the values that `test_step` logged."""
        return self._evaluate("test", self.preprocess(batch))

    def forward(self, *args: Any, mode: str = "tensor", **kwargs: Any) -> Any:
        """Return the losses of a batch, or the module's output without its target."""
        if mode not in MODES:
            raise ConfigError("mode", mode, f"one of {', '.join(MODES)}", options=MODES)
        if mode == "loss":
            return self._train(kwargs or (args if len(args) > 1 else args[0]))
        inputs, named, _ = split_target(args, kwargs)
        with self.running("test"):
            if overridden(self.module, "forward") or not overridden(self.module, "predict_step"):
                return self.module(*inputs, **named)
            return self.module.predict_step(named or (inputs if len(inputs) > 1 else inputs[0]), 0)  # type: ignore[operator]

    def _turns(self, batch: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        batch = self.preprocess(batch)
        for turn in range(self.optimizers):
            yield name_of(turn), self._train(batch, turn)

    def _train(self, batch: Any, turn: int | None = None) -> dict[str, Any]:
        step: Any = self.module.training_step
        given = {"batch_idx": self.batch_idx} | ({} if turn is None else {TURN: turn})
        with self.running("train", batch) as recorder:
            output = step(batch, **accepted_arguments(step, given, first=("batch",)))
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            found = "None, but a batch cannot be skipped" if output is None else f"a {type(output).__name__}"
            found += " without a tensor under 'loss'" if isinstance(output, Mapping) else ""
            raise TrainyardError(
                f"{type(self.module).__name__}.training_step returned {found}. Return the loss as a tensor, or a "
                "mapping with this tensor under 'loss'."
            )
        return {"loss": loss, LOGGED: recorder.numbers()}

    def require_step(self, split: str) -> None:
        """Check that the module has the step that evaluates a split, "val" or "test".

        Raises:
            TrainyardError: it does not define this step.
        """
        kind = _KINDS[split]
        if not overridden(self.module, f"{kind}_step"):
            raise TrainyardError(
                f"{type(self.module).__name__} has no {kind}_step, which is required to evaluate {split!r}. "
                f"Define it, or use data without this split, for example with data.{split}_fraction=0."
            )

    def _evaluate(self, split: str, batch: Any) -> Evaluated:
        self.require_step(split)
        kind = _KINDS[split]
        step: Any = getattr(self.module, f"{kind}_step")
        place = {"batch_idx": self.batch_idx, "dataloader_idx": self.dataloader_idx}
        with self.running(split, batch) as recorder:
            self.call_own(f"on_{kind}_batch_start", batch, **place)
            output = step(batch, **accepted_arguments(step, place, first=("batch",)))
            self.call_own(f"on_{kind}_batch_end", output, batch, **place)
        return Evaluated(self, split, recorder.entries)

    # -- the module and its run ----------------------------------------------------------------------------------------

    def configured_optimizers(self) -> dict[str, Optimizer]:
        """Return the optimizers of `configure_optimizers`, by name, and set `schedulers` to its schedulers.

        Raises:
            ConfigError: it returns no optimizer, or several for a `training_step` without `optimizer_idx`.
        """
        with self.running("train"):
            made: Configured = parsed(self.module.configure_optimizers())  # type: ignore[operator]
        if (len(made.optimizers) > 1) != self.takes_turns:
            accepted = (
                f"several optimizers, one for each {TURN}"
                if self.takes_turns
                else f"one optimizer, because training_step has no argument {TURN}"
            )
            raise FindingError(KEY, f"it returns {counted(len(made.optimizers), 'optimizer')}", accepted)
        self.schedulers, self.optimizers = made.schedulers, len(made.optimizers)
        return {name_of(turn): each for turn, each in enumerate(made.optimizers)}

    @contextmanager
    def running(self, split: str, batch: Any = None) -> Iterator[Recorder]:
        """Set the module's `trainer`, `log` and `log_dict` within the block, so that logged values are recorded."""
        recorder = Recorder(split, batch, self._device() or torch.device("cpu"))
        replaced = {"log": recorder.log, "log_dict": recorder.log_dict, "_trainer": self.facts}
        modules = [each.__dict__ for each in self.module.modules() if hasattr(each, "automatic_optimization")]
        before = [{name: own[name] for name in replaced if name in own} for own in modules]
        try:
            for own in modules:
                own.update(replaced)
            yield recorder
        except AttributeError as error:
            if error.obj is None and error.name in OF_LOGGERS:
                instead = "use self.log for numbers, and a hook for figures (docs/hooks.md)"
                raise TrainyardError(
                    f"self.logger is None in Trainyard, so {error.name!r} is not available: {instead}."
                ) from error
            raise
        finally:
            for own, held in zip(modules, before, strict=True):
                for name in replaced:
                    own.pop(name, None)
                own.update(held)

    def call_hook(self, name: str, *args: Any, split: str = "train", **kwargs: Any) -> Recorder:
        """Call a hook that the module overrides, and return the values that it logged."""
        with self.running(split) as recorder:
            self.call_own(name, *args, **kwargs)
        return recorder

    def call_own(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Call a method that the module overrides, with the arguments that it accepts, by name."""
        if overridden(self.module, name):
            method: Any = getattr(self.module, name)
            if method(*args, **accepted_arguments(method, kwargs, first=args)) == -1:
                raise TrainyardError(
                    f"{type(self.module).__name__}.{name} returned -1, but an epoch cannot be ended early. Return None."
                )

    def finish(self, split: str) -> Recorder:
        """Call the hooks at the end of an evaluation epoch, and return the values that they logged."""
        return self.call_hook(f"on_{_KINDS[split]}_epoch_end", split=split)


def name_of(turn: int) -> str:
    """Return the name of one of several optimizers."""
    return f"optimizer_{turn}"
