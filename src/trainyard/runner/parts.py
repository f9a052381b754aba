"""Parts of a training, each built when it is first needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainyard import optim as optimizers
from trainyard import rng_state
from trainyard.config.build import build, build_all, fill_auto
from trainyard.config.compiling import compile_arguments, compile_in_place, has_cuda_graphs
from trainyard.data import SPLITS, Data, Loader, as_data, limits
from trainyard.data.lengths import exact_length, length_hint, no_batches
from trainyard.data.nothing import NoLoader
from trainyard.data.order import EmptyDataError
from trainyard.distributed import Strategy
from trainyard.errors import ConfigError, FindingError, listed
from trainyard.metrics import Metric, configured
from trainyard.models import BaseModel, has_mode_contract
from trainyard.models.activation_checkpointing import checkpoint_activations
from trainyard.models.base import uncapturable
from trainyard.models.freeze import freeze
from trainyard.models.initialize import initialize
from trainyard.optim.identity import Beginning
from trainyard.rng import derive
from trainyard.runner.agreement import hooks_of_rank
from trainyard.runner.contract import EvalLoop, Loop, checked
from trainyard.runner.default_hooks import default_hooks
from trainyard.runner.dispatch import Dispatch, build_hooks, stages_of
from trainyard.runner.eval_loops import TestLoop, ValLoop
from trainyard.runner.loops import TrainLoop
from trainyard.runner.member import Member
from trainyard.runner.model_losses import NAME as LOSSES
from trainyard.runner.model_losses import ModelLosses, evaluates_itself
from trainyard.runner.preprocessor import with_preprocessor
from trainyard.runner.simulation import needs_data
from trainyard.runner.switching import switches
from trainyard.schedules import Plateau, Schedule
from trainyard.step.clip import make_clip
from trainyard.step.precision import make_precision
from trainyard.step.several import step_of
from trainyard.step.step import Step

log = logging.getLogger(__name__)


class Parts:
    """Builds the parts of a training from its settings: configs when they are first needed; objects are used as given.

    Args:
        settings: the arguments of `trainyard.runner.Runner` by name.
        device: the device of the model.
        strategy: how the run is distributed over devices.
        members: the members that train with these parts.

    Attributes:
        added_hooks: additional hooks by name.
    """

    def __init__(
        self, settings: Mapping[str, Any], device: torch.device, strategy: Strategy, members: Sequence[Member]
    ) -> None:
        self.settings = settings
        self.device = device
        self.strategy = strategy
        self.members = members
        self.added_hooks: dict[str, Any] = {}

    lanes_differ = False
    """Whether the members of a stack are at different positions in the training, or end at different ones."""

    @property
    def seed(self) -> int:
        """The seed of the data and of the parts."""
        return int(self.settings["seed"])

    @cached_property
    def data(self) -> Data | None:
        built = build(self.settings["data"], "data")
        if isinstance(built, Mapping):
            built = {
                name: build_all(entry, f"data.{name}") if name in SPLITS and isinstance(entry, Mapping) else entry
                for name, entry in build_all(built, "data").items()
            }
        try:
            return None if built is None else as_data(built)
        except ConfigError as error:
            raise error.under("data") from None

    @cached_property
    def model_config(self) -> Any:
        """The config of the model with every `auto` filled in; the model itself if it was given as an object.

        The preprocessor of the data is placed before the model's own `data_preprocessor`.
        """
        config = fill_auto(self.settings["model"], "model", self.data.spec if self.data else None)
        return config if self.data is None else with_preprocessor(config, self.data.preprocessor)

    @cached_property
    def model(self) -> nn.Module:
        config = self.model_config
        with rng_state.seeded(derive(self.seed, "init")):
            model = build(config, "model")
        if not isinstance(model, nn.Module) or not has_mode_contract(model):
            raise ConfigError(
                "model",
                type(model).__name__,
                "a module whose forward takes `mode`",
                hint="trainyard.models.Supervised(net, loss) turns any module into such a model.",
            )
        own = {"member": self.members[0]}
        if init := self.settings["init"]:
            with rng_state.seeded(derive(self.seed, "init", 1)):
                log.info("%s.", initialize(model, init), extra=own)
        if frozen := self.settings["freeze"]:
            log.info("%s.", freeze(model, frozen), extra=own)
        model = model.to(self.device)
        checkpoint_activations(model, self.settings["activation_checkpointing"] or ())
        model = self.strategy.place(model)
        if (compiling := compile_arguments(self.settings["compile"])) is not None:
            compile_in_place(model, compiling)
        if isinstance(model, BaseModel):
            model.attach(self)
        return model

    @cached_property
    def optimizer(self) -> Optimizer:
        return self.make_optimizer()

    def learning_rates(self) -> list[float]:
        """Return each member's learning rate, that of the first parameter group."""
        return [float(self.optimizer.param_groups[0]["lr"])]

    def make_optimizer(self) -> Optimizer:
        """Return the optimizer of the model's parameters, as configured or given."""
        optimizer: Any = optimizers.for_model(self.settings["optim"], self.model)
        if switches(optimizer):
            optimizer.train()
        return optimizer  # type: ignore[no-any-return]

    @cached_property
    def beginning(self) -> Beginning:
        """The parameters that were trained when the optimizer was built."""
        return Beginning.of(self.model, self.optimizer)

    @cached_property
    def schedule(self) -> Schedule | Plateau | None:
        return self.make_schedule()

    def make_schedule(self) -> Schedule | Plateau | None:
        """Return the schedule, as configured or given, for this optimizer and the length of this run."""
        schedule = build(self.settings["schedule"], "schedule")
        if isinstance(schedule, Mapping):
            schedule = optimizers.schedules_of(build_all(schedule, "schedule"))
        if not hasattr(schedule, "bind") and schedule is not None:
            accepted = "a schedule of trainyard.schedules, a mapping of schedules by optimizer, or null"
            raise ConfigError("schedule", type(schedule).__name__, accepted)
        if schedule is not None:
            loop, train = self.train_loop, self.loader("train")
            unit = schedule.by or loop.unit
            length = loop.max_epochs(self) if unit == "epoch" else loop.max_iters(self)
            try:
                schedule.bind(
                    self.optimizer,
                    length=length,
                    direction=self.members[0].objective.direction,
                    unit=loop.unit,
                    epoch_length=length_hint(train),
                    certain=unit == loop.unit or exact_length(train) is not None,
                )
            except ConfigError as error:
                raise error.under("schedule") from None
        return schedule  # type: ignore[no-any-return]

    @cached_property
    def train_loop(self) -> TrainLoop:
        loop = build(self.settings["loop"], "loop")
        if loop is None:
            raise ConfigError("loop", None, "a training loop, for example EpochBasedTrainLoop(max_epochs=10)")
        own: TrainLoop = checked("loop", loop, Loop)
        return own

    @cached_property
    def val_loop(self) -> ValLoop:
        return self._eval_loop("val_loop", ValLoop)

    @cached_property
    def test_loop(self) -> ValLoop:
        return self._eval_loop("test_loop", TestLoop)

    def _eval_loop(self, key: str, usual: type[ValLoop]) -> ValLoop:
        given = build(self.settings[key], key)
        loop: ValLoop = checked(key, usual() if given is None else given, EvalLoop, other="null")
        return loop

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        config = fill_auto(self.metric_settings, "metric", self.data.spec if self.data else None)
        found = {LOSSES: ModelLosses()} if self.validates_by_loss else configured(config)
        return {name: self.strategy.metric(metric) for name, metric in found.items()}

    @cached_property
    def validates_by_loss(self) -> bool:
        """Whether the losses of the model are its validation: there is no metric, and the model does not define
        `val_step`."""
        return not any(metric is not None for metric in self.metric_settings.values()) and not evaluates_itself(
            self.model
        )

    @property
    def metric_settings(self) -> Mapping[str, Any]:
        """The metrics or their configs, by name; empty for none.

        Raises:
            ConfigError: the value is not a mapping.
        """
        given = self.settings["metrics"]
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(
                "metric", type(given).__name__, "a mapping from names to metrics or their configs, or null"
            )
        return given or {}

    @property
    def hook_settings(self) -> Mapping[str, Any]:
        """The hooks or their configs, by name."""
        hooks: Mapping[str, Any] | None = self.settings["hooks"]
        return default_hooks() if hooks is None else hooks

    @property
    def own_stages(self) -> tuple[str, ...]:
        """The stages of custom loops."""
        return stages_of({key: self.settings[key] for key in ("loop", "val_loop", "test_loop")})

    @cached_property
    def dispatch(self) -> Dispatch:
        hooks = build_hooks(self.hook_settings)
        _ = self.model  # which may add some
        hooks |= self.added_hooks
        if self.strategy.world_size > 1:
            hooks = hooks_of_rank(hooks, self.strategy)
        return Dispatch(hooks, self.own_stages)

    @cached_property
    def step(self) -> Step:
        step = step_of(
            self.model,
            self.optimizer,
            precision=partial(make_precision, self.settings["precision"], self.device),
            clip=make_clip(self.settings["clip_grad_norm"], self.settings["clip_grad_value"]),
            accumulate=self.settings["accumulate"],
            by=self.settings["accumulate_by"],
            strategy=self.strategy,
        )
        return self.captured(step, self.model)

    def captured(self, step: Step, code: nn.Module) -> Step:
        """Return `step` as a CUDA graph, if the run has a CUDA device and requests it; `code` is the code that the step
        runs."""
        if self.device.type != "cuda" or self.settings["capture"] is False:
            return step
        from trainyard.step.cuda_graph import captured_step  # imported here because only CUDA needs it

        marked = uncapturable(code)
        refusal = None if marked is None else f"{marked} is marked as not capturable"
        compiling = compile_arguments(self.settings["compile"])
        if compiling is not None and has_cuda_graphs(compiling):
            refusal = "compile creates its own CUDA graphs"
        elif compiling is not None and self.settings["capture"] is not True:
            refusal = "the model is compiled; capture=true captures the compiled model"
        elif self.settings["activation_checkpointing"]:
            refusal = (
                "activation_checkpointing saves the state of the random generator, which a CUDA graph does not support"
            )
        elif self.strategy.world_size > 1:
            refusal = "the run is on several devices"
        modules = {**dict(code.named_modules()), "": self.model}  # for a stacked model, `self.model` has the tensors
        return captured_step.captured(step, modules, self.device, refusal)

    @cached_property
    def loaders(self) -> dict[str, Loader]:
        """The loaders built so far, by set."""
        return {}

    def loader(self, split: str) -> Loader:
        """Return the loader of a split; if the split has several sets, the loader of the first one."""
        split = next(iter(self.sets(split)), split)
        if split not in self.loaders:
            if split == "train" and self.data is None and not needs_data(self.train_loop):
                self.loaders[split] = NoLoader()
                return self.loaders[split]
            self.loaders[split] = self._loader(split)
            if split == "train":
                self.strategy.train_on(self.loaders[split])
        return self.loaders[split]

    def second_loader(self) -> Loader:
        """Return a loader of the training batches for code that reads them while the training reads `loader("train")`.

        It is the same loader, unless a second iteration of that loader would end the first one.
        """
        own = self.loader("train")
        return self._second_loader if getattr(own, "one_at_a_time", False) else own

    @cached_property
    def _second_loader(self) -> Loader:
        return self._loader("train")

    def training_sample(self, batches: int | None) -> Loader:
        """Return a new loader of training data for evaluation: complete batches, of which each rank has some.

        With `overfit`, they are the batches of the training. Otherwise, they are the same samples for all seeds.

        Args:
            batches: the maximum number of batches of all ranks together, in addition to `limit`; None for no maximum.
        """
        seed = 0 if self.settings["overfit"] is None else self.seed
        loader = self._first(self._read("train", seed), "train")
        return self._of_rank(loader if batches is None else limits.FirstBatches(loader, batches), "val")

    def _loader(self, split: str) -> Loader:
        """Return a new loader of this rank's part of a set, with `limit` and `overfit` applied."""
        if split == "train":  # a rank has its rows of every batch
            return self._first(self._of_rank(self.whole_loader(split), split), split)
        evaluated = "train" if self.settings["overfit"] is not None and not split.startswith("test") else split
        return self._of_rank(self._first(self.whole_loader(evaluated), split), split)  # a rank has some of the batches

    def _first(self, loader: Loader, split: str) -> Loader:
        """Return a loader of the batches of a set that `limit` and `overfit` leave."""
        overfit = limits.batches_to_overfit(self.settings["overfit"])
        if overfit is not None and not split.startswith("test"):
            return limits.FirstBatches(loader, overfit, repeat=True)
        limit = limits.parse(self.settings["limit"]).get(split.partition("/")[0])
        found: Loader = limits.limited(loader, limit, split)
        return found

    def _of_rank(self, loader: Loader, split: str) -> Loader:
        try:
            return self.strategy.loader(loader, split)
        except ConfigError as error:
            raise error.under("data") from None

    def whole_loader(self, split: str) -> Loader:
        """Return a new loader of all batches of a set, of all ranks."""
        return self._read(split, self.seed)

    def _read(self, split: str, seed: int) -> Loader:
        """Return a new loader of a set in the order of a seed."""
        if self.data is None:
            raise ConfigError("data", None, f"data with the split {split}")
        if split not in self.data.splits:
            found = f"there is no split {split}, only {listed(self.data.splits)}"
            raise FindingError("data", found, "data with this split")
        try:
            return self.data.loader(split, seed=seed, device=self.device)
        except EmptyDataError as error:
            raise no_batches(split) from error
        except ConfigError as error:
            raise error.under("data") from None

    def metainfo(self, split: str) -> Any:
        """Return the `metainfo` of the dataset of a split; None if it has none."""
        return None if self.data is None else self.data.metainfo(split)

    def has_split(self, split: str) -> bool:
        """Return whether the data has a set of this split."""
        return bool(self.sets(split))

    def sets(self, split: str) -> tuple[str, ...]:
        """Return the data sets of a split, in order: the split itself, or the sets named after it (`val/easy`)."""
        splits = self.data.splits if self.data is not None else ()
        return tuple(name for name in splits if name == split or name.startswith(f"{split}/"))
