"""Runner: owns the parts of a training and drives its loops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from trainyard import rng_state
from trainyard.checks import boolean, choice, integer, seed_number
from trainyard.config.build import build
from trainyard.config.compiling import check_capture, compile_arguments
from trainyard.config.resolving import replaced
from trainyard.data.limits import batches_to_overfit
from trainyard.data.limits import parse as parse_limits
from trainyard.distributed import as_strategy
from trainyard.errors import ConfigError
from trainyard.models import call
from trainyard.rng import derive
from trainyard.runner import unfreezing
from trainyard.runner.arguments import arguments, as_arguments, as_keys, directory
from trainyard.runner.env import as_env, find_device
from trainyard.runner.eval_loops import ValLoop
from trainyard.runner.evaluation import Evaluator, Prediction
from trainyard.runner.interactive import Interactive
from trainyard.runner.kept_states import KeptStates
from trainyard.runner.member import Direction, Member, member_arguments
from trainyard.runner.misfit import explained
from trainyard.runner.mmengine_config import check_not_mmengine
from trainyard.runner.model_losses import loss_step
from trainyard.runner.reading import TrainingReader
from trainyard.runner.sanity_check import sanity_check as check
from trainyard.runner.session import session
from trainyard.runner.snapshot import Snapshot
from trainyard.runner.state import Start, capture, restore, restore_best, starting_point
from trainyard.runner.switching import end_training
from trainyard.step.group import BY
from trainyard.step.precision import make_precision
from trainyard.track import RunInfo, Tracker, as_tracker
from trainyard.track.scalars import ScalarBuffer

log = logging.getLogger(__name__)

_LEAVES = attrgetter("leaves")
_CHANGES = ("before_train_epoch", "after_train_epoch")
"""Stages after which unfrozen parameters are added to the optimizer."""


class Runner(Interactive):
    """Trains, validates and tests a model; every argument is the built object or its config.

    A part is built from its config when it is first needed: a Runner that only validates builds no optimizer. In the
    configs of the model and the metrics, the value `auto` is read from the properties of the data (`data.spec`).

    Args:
        model: a module whose `forward` takes `mode` (docs/models.md).
        data: a `trainyard.data.Data`, or a dict of loaders by split (`train`, `val`, `test`).
        optim: an optimizer, or a partial that builds an optimizer from the parameters.
        schedule: a `trainyard.schedules.Schedule`; None: the optimizer's hyperparameters are constant.
        hooks: the hooks by name; None: the default hooks.
        metrics: the metrics by name; results are `val/<name>` and `test/<name>`.
        loop: an `EpochBasedTrainLoop`, an `IterBasedTrainLoop`, or a custom loop.
        device: `auto` is CUDA if it is available, otherwise the CPU.
        precision: `fp32`, `tf32`, `bf16` or `fp16`.
        accumulate: the number of batches per optimizer step.
        accumulate_by: the weight of each batch: "items" (the `num_items` that the model returns, otherwise the number
            of samples), or "batches" (equal weights).
        clip_grad_norm: the maximum 2-norm of all gradients together, or None.
        clip_grad_value: the maximum absolute value of a gradient element, or None.
        init: initializers by pattern for modules (`trainyard.models.initialize`).
        freeze: patterns for modules and parameters that are not trained (`trainyard.models.freeze`).
        activation_checkpointing: patterns for modules whose activations are recomputed in the backward pass.
        compile: compile the model with `torch.compile`: True, the name of a mode, or a mapping of its arguments.
        capture: capture the step into a CUDA graph: `auto` does so if the device is CUDA and the model is not compiled;
            True requires a CUDA device, and also captures a compiled model.
        seed: every random choice is derived from it.
        work_dir: the run's directory. Without a directory, the run writes no checkpoint and no journal.
        load_from: the checkpoint or weights file from which training starts; or a mapping with its `path` and a
            selection (`trainyard.runner.weights.LoadFrom`).
        resume: True continues from the newest checkpoint in `work_dir` (from the beginning if there is no checkpoint);
            a path continues from this checkpoint.
        resume_override: keys (`optim.lr`, `data.batch_size`) whose values a resumed run takes from its config.
        tracker: uploads the journal to MLflow.
        env: a `trainyard.runner.Env`.
        val_loop, test_loop: custom validation and test loops; None for `ValLoop` and `TestLoop`.
        strategy: `ddp` or `fsdp` by name, a `trainyard.distributed.Strategy`, or its config; None for one device.
        objective: the metric that ranks runs.
        direction: `maximize` or `minimize`.
        sanity_check: try a step and a checkpoint before training; one validation batch is always evaluated.
        limit: use only the first batches of each epoch: `train_batches`, `val_batches`, `test_batches`, as numbers or
            as fractions.
        overfit: train and validate on the same first batches in every epoch.
        name: the run's name in MLflow; by default the directory's name.
        info: the run's record for MLflow; None: a record with only the name.

    Attributes:
        kept_states: the states of paused members in memory, if they can continue in this process; otherwise None.
    """

    kept_states: KeptStates | None = None

    def __init__(
        self,
        model: Any,
        data: Any = None,
        optim: Any = None,
        schedule: Any = None,
        hooks: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        loop: Any = None,
        *,
        device: str = "auto",
        precision: str = "fp32",
        accumulate: int = 1,
        accumulate_by: str = "items",
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        init: Mapping[str, Any] | None = None,
        freeze: Sequence[str] | None = None,
        activation_checkpointing: Sequence[str] | None = None,
        compile: bool | str | Mapping[str, Any] = False,  # noqa: A002 - the word that torch uses
        capture: bool | str = "auto",
        seed: int = 0,
        work_dir: str | Path | None = None,
        load_from: str | Path | Mapping[str, Any] | None = None,
        resume: bool | str | Path = False,
        resume_override: Sequence[str] | None = None,
        tracker: Any = None,
        env: Any = None,
        val_loop: Any = None,
        test_loop: Any = None,
        strategy: Any = None,
        objective: str = "val/loss",
        direction: Direction = "minimize",
        sanity_check: bool = True,
        limit: Mapping[str, Any] | None = None,
        overfit: int | None = None,
        name: str | None = None,
        info: RunInfo | None = None,
    ) -> None:
        seed, accumulate = seed_number("seed", seed), integer("accumulate", accumulate, at_least=1)
        work_dir = directory(work_dir)
        settings = {name: given for name, given in locals().items() if name not in ("self", "__class__")}
        choice("accumulate_by", accumulate_by, BY)
        boolean("sanity_check", sanity_check)
        parse_limits(limit), batches_to_overfit(overfit)
        compile_arguments(compile)  # a wrong value is an error before anything is built
        self.tracker: Tracker = as_tracker(build(tracker, "tracker"))
        as_env(build(env, "env")).apply()
        own_strategy = as_strategy(build(strategy, "strategy"))
        own_device = find_device(device)
        try:
            own_device = own_strategy.begin(own_device)
        except ConfigError as error:
            raise error.under("strategy") from None
        check_capture(capture, own_device.type)
        super().__init__(settings, own_device, own_strategy, ())
        self.members = self.all_members = self.make_members()
        self.scalars = ScalarBuffer()
        self.iter = 0
        self.epoch = 0
        self.training = self.interrupted = False
        self.asked_to_end = False
        self._in_session = False
        self.gauges: dict[str, Callable[[], float | list[float]]] = {}
        self._prepared: set[str] = set()
        self._eval_model: nn.Module | None = None

    def make_members(self) -> Sequence[Member]:
        """Return the members at the start of the Runner."""
        member = Member(**member_arguments(self.settings))
        member.join(self)
        return [member]

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any] | DictConfig, **overrides: Any) -> Runner:
        """Create a Runner from a composed config. Its groups `hook` and `metric` become `hooks` and `metrics`.

        Args:
            cfg: the config. Keys that are not arguments of the Runner belong to the application and are ignored.
            **overrides: arguments or groups that replace values of the config before its interpolations are resolved.

        Raises:
            ConfigError: an interpolation cannot be resolved (`work_dir` has a value only in a Hydra application), or
                the config is a config of MMEngine.
        """
        check_not_mmengine(cfg)
        own = as_arguments(overrides)
        return cls(**(arguments(replaced(cfg, as_keys(overrides))) | own))

    # -- what the loops and hooks read ---------------------------------------------------------------------------------

    def _set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self.epoch_begin = self.iter

    epoch = property(attrgetter("_epoch"), _set_epoch, doc="Number of completed epochs; setting it starts an epoch.")

    @property
    def batches_done(self) -> int:
        """Number of completed batches in the current epoch; together with `epoch`, the position of the run."""
        return self.iter - self.epoch_begin

    def go_to(self, epoch: int, batches_done: int, iteration: int) -> None:
        """Set the position, and the number of completed iterations."""
        self.iter, self.epoch = iteration, epoch
        self.epoch_begin = iteration - batches_done

    @cached_property
    def reader(self) -> TrainingReader:
        """Reader of the training data, for loops."""
        return TrainingReader(self.loader("train"), self.strategy)

    @property
    def stacked(self) -> bool:
        """Whether outputs and losses have a leading axis of members. It is True for a stack, even of one member."""
        return False

    @property
    def work_dir(self) -> Path | None:
        """The directory of the first member; None if the run writes no files."""
        return self.members[0].work_dir

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and tested: `model`, or a replacement that a hook has set (EMA)."""
        return self.model if self._eval_model is None else self._eval_model

    @eval_model.setter
    def eval_model(self, model: nn.Module) -> None:
        self._eval_model = model

    @property
    def stopping(self) -> bool:
        """Whether training ends after this iteration: it was interrupted, or every member has stopped or pauses."""
        return self.interrupted or all(map(_LEAVES, self.members))

    def interrupt(self) -> None:
        """End the run after this iteration, with a checkpoint. Several ranks end a few iterations later."""
        self.asked_to_end = True
        self.interrupted = self.strategy.world_size == 1  # several ranks have to agree on the iteration

    def snapshot(self) -> Snapshot:
        """Return the complete state that a step changes."""
        return Snapshot(self.model, self.step)

    def stage(self, name: str) -> list[Callable[..., None]]:
        """Return the hook methods of a stage, in the order of their calls.

        Raises:
            ConfigError: there is no such stage.
        """
        return self.dispatch.stage(name)

    def call(self, stage: str, *args: Any, **kwargs: Any) -> None:
        """Call the hooks of a stage."""
        self.dispatch.call(stage, self, *args, **kwargs)
        if stage in _CHANGES:
            unfreezing.notice(self)

    def unfreeze(self, patterns: Sequence[str]) -> list[str]:
        """Train the parameters that match a pattern from the next step on, in separate parameter groups.

        The groups have the initial values of the optimizer, including its `paramwise` rules. A schedule treats the
        groups as if they had existed from the start. Parameters that are already trained are not affected. Checkpoints
        record which parameters are trained.

        Args:
            patterns: see `freeze`: globs for names or classes of modules, or for names of parameters.

        Returns:
            The names of the parameters that were frozen before.

        Raises:
            ConfigError: a pattern matches no parameter, or the run is on several devices.
        """
        return unfreezing.unfreeze(self, patterns)

    def predict_step(self, split: str, model: nn.Module | None = None, *, losses: bool = True) -> Callable[[Any], Any]:
        """Return the function from a batch to predictions: `val_step` or `test_step`, in the run's precision.

        In a run that is validated by the losses of its model, the function returns these losses.

        Args:
            split: "val" or "test".
            model: the model; by default, the evaluated model.
            losses: whether the function can return losses instead of predictions.
        """
        model = self.eval_model if model is None else model
        if losses and self.validates_by_loss:
            step = loss_step(model)
            return Prediction(model, split, step, make_precision(self.settings["precision"], self.device))
        predict = getattr(model, f"{split}_step", partial(call, model, mode="predict"))
        return Prediction(model, split, predict, make_precision(self.settings["precision"], self.device))

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluates batches for the evaluation loops."""
        return Evaluator.of(self)

    def record_array(self, name: str, value: Tensor) -> None:
        """Record a result that is not one number per member, such as a confusion matrix.

        Args:
            name: the name of the result with the split as prefix, such as `val/confusion`.
            value: the result; for a stack, it has a leading axis of members.
        """
        for member, own in zip(self.members, value.unbind(0) if self.stacked else [value], strict=True):
            if member.due:
                member.record_array(name, own)

    def seeded(self, purpose: str, *index: int) -> AbstractContextManager[None]:
        """Return a context in which all random numbers are derived from `(seed, purpose, *index)`.

        After the context, the random number generators continue as if the context had not been used.
        """
        return rng_state.seeded(derive(self.seed, purpose, *index))

    def seed_generators(self) -> None:
        """Seed the random generators for the training."""
        rank = self.strategy.rank  # the first rank draws what one device draws
        rng_state.seed_all(derive(self.seed, "train", *([rank] if rank else [])))

    # -- running -------------------------------------------------------------------------------------------------------

    def prepare(self, mode: str = "train") -> None:
        """Build all parts that `train`, `val` or `test` needs, and load the weights or the checkpoint.

        Raises:
            TrainyardError: the config is invalid. No file has been written.
        """
        if self._prepared & {mode, "train"}:
            return
        starts = self.starting_points()
        if mode == "train":
            _ = self.train_loop, self.val_loop, self.test_loop
        _ = self.dispatch, self.model, self.loader(mode), self.metrics, [self.loader(name) for name in self.sets(mode)]
        if mode == "train":
            _ = self.optimizer, self.beginning, self.schedule, self.step
            with explained(self):
                check(self, resumes=any(start is not None and start.resumes for start in starts))
            self.seed_generators()
        for member, start in zip(self.members, starts, strict=True):
            restore(member, start, weights_only=mode != "train")
        self._prepared.add(mode)

    def starting_points(self) -> list[Start | None]:
        """Return the checkpoint from which each member continues; None: the member starts from the beginning."""
        return [starting_point(member) for member in self.members]

    def train(self) -> list[dict[str, float]]:
        """Train to the end: from the beginning, from the checkpoint of `resume`, or from the point of an interruption.

        Returns:
            For each member, the latest value of each metric.
        """
        self.prepare()
        self.go_on()
        with self.session(), self.interruptible():
            self.training = True
            try:
                self.call("before_train")
                with explained(self):
                    self.run_loop()
                if not self.stopping:
                    unfreezing.check_none_missed(self)
                self.call("after_train")
                self.scalars.flush()
                end_training(self.optimizer)
            except BaseException:
                self.scalars.salvage()
                raise
            finally:
                self.training = False
        return [member.metrics for member in self.members]

    def run_loop(self) -> None:
        """Run the training loop from the current position to its end."""
        self.train_loop.run(self)

    def val(self) -> list[dict[str, float]]:
        """Validate the current model, or the model in `load_from`; return the results of each member by name."""
        return self._evaluate("val", self.val_loop)

    def test(self) -> list[dict[str, float]]:
        """Test the current model, or the model in `load_from`; return the results of each member by name."""
        return self._evaluate("test", self.test_loop)

    def load_best(self) -> None:
        """Load the weights of the best checkpoint, if there is one, into the evaluated model."""
        for member in self.members:
            restore_best(member)

    def _evaluate(self, split: str, loop: ValLoop) -> list[dict[str, float]]:
        self.prepare(split)
        with self.session(), explained(self):
            return loop.run(self)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Open one run in MLflow for the block: open the journals, call the hooks, and write the status at the end.

        `train`, `val` and `test` open a session themselves if no session is open.
        """
        if self._in_session:
            yield
            return
        self._in_session = True
        try:
            with session(self):
                yield
        finally:
            self._in_session = False

    def checkpoint(self, members: Sequence[Member] | None = None) -> list[dict[str, Any]]:
        """Return the states of these members (default: all), as in checkpoint files. The tensors are not copies."""
        generators, reading = rng_state.state(), self.reader.state_dict(self.epoch, self.batches_done)
        chosen = self.members if members is None else members
        return [capture(member, member.random_state(generators), reading) for member in chosen]
