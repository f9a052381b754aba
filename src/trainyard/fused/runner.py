"""The Runner of a fused group: K members trained by one program."""

# ruff: noqa: A003 - `iter` is the Runner's word

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from trainyard.config.build import build
from trainyard.data import Loader
from trainyard.errors import Unfusable
from trainyard.fused.loader import stack_loader
from trainyard.fused.member_parts import MemberDispatch, MemberOptimizer, MemberStep
from trainyard.fused.metrics import stack_metrics
from trainyard.fused.model import StackedModel
from trainyard.fused.optim import StackedOptimizer, stack_optimizers
from trainyard.fused.schedule import stack_schedules
from trainyard.metrics import Metric
from trainyard.optim.several import OptimizerDict
from trainyard.runner.dispatch import Dispatch, build_hook, build_hooks
from trainyard.runner.runner import Runner, arguments
from trainyard.step.precision import make_precision
from trainyard.step.stacked import StackedScaledAutocast, stack_clips
from trainyard.step.step import Step, make_step
from trainyard.track import RunInfo, Tracker

log = logging.getLogger(__name__)

Config = Mapping[str, Any] | DictConfig


class FusedRunner(Runner):
    """Trains K members as one program, each as its own Runner would.

    It is made of K Runners, each from its member's config. Each builds its model under its own seed, its optimiser and
    its schedule, and hands them over to be stacked; from then on what it holds are views of the stacks. The data, the
    loops, the hooks and the metrics are those of the first.

    Args:
        configs: the members'; they differ in what `trainyard.sweep.kinds` allows.
        infos: the members' records for MLflow; None makes one that holds the name.
        tracker: what carries all their journals to MLflow.

    Raises:
        Unfusable: (in `prepare`) something here cannot be stacked.
    """

    def __init__(
        self, configs: Sequence[Config], *, infos: Sequence[RunInfo] | None = None, tracker: Tracker | None = None
    ) -> None:
        self.env = build(configs[0].get("env"), "env")
        super().__init__(**arguments(configs[0]) | {"tracker": tracker, "env": self.env})
        self._solos = [
            MemberRunner(self, index, config, infos[index] if infos else None) for index, config in enumerate(configs)
        ]
        self._arranged = list(self._solos)
        self.members = [solo.members[0] for solo in self._solos]
        if self._compile is not None:
            raise Unfusable("compile is for one model at a time")
        if self._activation_checkpointing:
            raise Unfusable("activation_checkpointing is for one model at a time: vmap cannot repeat a forward pass")
        # Attention on the CPU has no batching rule: it is run member by member, rightly. The width is measured anyway.
        warnings.filterwarnings(
            "ignore", "There is a performance drop because we have not yet implemented the batching"
        )

    # -- the parts, stacked --------------------------------------------------------------------------------------------

    @property
    def solos(self) -> Sequence[Runner]:
        return self._solos

    @property
    def arranged(self) -> Sequence[Runner]:
        return self._arranged

    @cached_property
    def start(self) -> None:
        """Every member has its own, and none may be amiss."""
        for solo in self._solos:
            _ = solo.start

    @cached_property
    def model(self) -> nn.Module:
        own_batches = getattr(self.loader("train"), "stacked", False)
        return StackedModel([solo.model for solo in self._solos], own_batches=own_batches)

    @property
    def stack(self) -> StackedModel:
        """The stacked model."""
        assert isinstance(self.model, StackedModel)
        return self.model

    @cached_property
    def optimizer(self) -> StackedOptimizer:
        stacks: Iterator[Any] = self.stack.parameters()
        stacked: dict[Tensor, nn.Parameter] = dict(zip(self._solos[0].model.parameters(), stacks, strict=True))
        optimizers = [solo.make_optimizer() for solo in self._solos]
        if isinstance(optimizers[0], OptimizerDict):
            raise Unfusable("the model has several optimisers")
        self.optimizer_kind = type(optimizers[0]).__name__
        return stack_optimizers(optimizers, stacked)

    @cached_property
    def schedule(self) -> Any:
        return stack_schedules([solo.make_schedule() for solo in self._solos])

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        self._alone = super().metrics
        return stack_metrics(self._alone, len(self.members))

    @cached_property
    def dispatch(self) -> Dispatch:
        hooks = build_hooks(self._hooks)
        for name, hook in hooks.items():
            if not getattr(hook, "stackable", False):
                raise Unfusable(f"hook.{name} ({type(hook).__name__}) is made for one member at a time")
            nodes = [solo._hooks[name] for solo in self._solos]
            if any(node != nodes[0] for node in nodes):
                hook.stack([build_hook(node, name) for node in nodes])
        return Dispatch(hooks | {"cut": _Cut()}, self.own_stages)

    @cached_property
    def step(self) -> Step:
        fp16 = self._precision == "fp16"
        count = len(self._solos)
        precision = StackedScaledAutocast(self.device, count) if fp16 else make_precision(self._precision, self.device)
        clip = stack_clips(
            [solo._clip_grad_norm for solo in self._solos], [solo._clip_grad_value for solo in self._solos]
        )
        step = make_step(
            self.stack.train_step, self.optimizer, precision=precision, clip=clip, accumulate=self._accumulate
        )
        return self.captured(step, self.stack.code)

    def loader(self, split: str) -> Loader:
        split = next(iter(self.sets(split)), split)
        if split not in self._loaders:
            loader = super().loader(split)
            self._loaders[split] = stack_loader(loader, [solo.seed for solo in self._solos])
            if split != "train" and getattr(self._loaders[split], "stacked", False):
                raise Unfusable(f"the {split} batches come in an order of each member's own")
        return self._loaders[split]

    def learning_rates(self) -> list[float]:
        rates: list[float] = self.optimizer.param_groups[0]["lr"].tolist()
        return rates

    def checkpoint(self, members: Iterable[int] | None = None) -> list[dict[str, Any]]:
        return super().checkpoint(range(len(self.members)) if members is None else members)

    def record_array(self, name: str, value: Tensor) -> None:
        for solo, array in zip(self._solos, value.unbind(0), strict=True):
            solo.record_array(name, array)

    # -- members that end before the others ----------------------------------------------------------------------------

    def cut(self) -> None:
        """Let the members that have stopped leave the stacks, unless all have; the others go on without them."""
        leaving = [index for index, member in enumerate(self.members) if member.stop_reason is not None]
        if not leaving or len(leaving) == len(self.members) or self.interrupted:
            return
        self.call("before_leave", leaving=leaving)
        staying = [index for index in range(len(self.members)) if index not in leaving]
        for index in leaving:
            log.info("%s ends: %s.", self.members[index].info.name, self.members[index].stop_reason)
        if self._eval_model is not None:
            assert isinstance(self._eval_model, StackedModel)
            evaluated = list(self._eval_model.solos)
            self._eval_model.keep(staying)
        else:
            evaluated = list(self.stack.solos)
        self.stack.keep(staying)
        for index in leaving:
            self._solos[index].leave(evaluated[index])
        self.members = [self.members[index] for index in staying]
        self._solos = [self._solos[index] for index in staying]
        for index, solo in enumerate(self._solos):
            solo.index = index
        kept = torch.tensor(staying)
        step = self.step
        for part in (self.optimizer, self.schedule, step, step.precision, step.clip, self._loaders["train"]):
            if hasattr(part, "keep"):
                part.keep(kept)
        for hook in self.dispatch.hooks.values():
            if hasattr(hook, "keep"):
                hook.keep(staying)
        self._restack_metrics()

    def load_best(self) -> None:
        """Gather all members that have not failed, and give each the weights of its best checkpoint.

        What is gathered can be tested; it trains no further.
        """
        self._solos = [solo for solo in self._arranged if not solo.members[0].failed]
        self.members = [solo.members[0] for solo in self._solos]
        older = [solo for solo in self._solos if not solo.members[0].is_best(solo.iter)]
        self._eval_model = StackedModel([solo.eval_model for solo in self._solos])
        for index, solo in enumerate(self._solos):
            solo.gather(index)
        for solo in older:
            Runner.load_best(solo)
        self._restack_metrics()

    def _restack_metrics(self) -> None:
        self.__dict__["metrics"] = stack_metrics(self._alone, len(self.members))


class MemberRunner(Runner):
    """The Runner of one member of a fused group, through which its part of the group's state is read and written.

    Its model and schedule are its own; whatever else has state is the group's, and shown as a solo Runner has it.

    Attributes:
        index: the member's number among those that still train.
    """

    def __init__(self, group: FusedRunner, index: int, config: Config, info: RunInfo | None) -> None:
        self._group = group
        self._evaluated: nn.Module | None = None
        self._stands: tuple[int, int] | None = None
        self.index = index
        super().__init__(**arguments(config) | {"tracker": None, "env": group.env, "info": info})

    @property
    def whole(self) -> Runner:
        return self._group

    @cached_property
    def data(self) -> Any:
        return self._group.data

    @cached_property
    def train_loop(self) -> Any:
        return self._group.train_loop

    @property
    def optimizer(self) -> Any:
        return MemberOptimizer(self._group.optimizer, self.index, self._group.optimizer_kind)

    @property
    def schedule(self) -> Any:
        schedule = self._group.schedule
        return None if schedule is None else schedule.member(self.index)

    @property
    def step(self) -> Any:
        return MemberStep(self._group.step, self.index)

    @property
    def dispatch(self) -> Any:
        return MemberDispatch(self._group.dispatch, self.index)

    def loader(self, split: str) -> Loader:
        return self._group.loader(split)

    @property
    def iter(self) -> int:
        return self._stands[0] if self._stands else self._group.iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._group.iter = value

    @property
    def epoch(self) -> int:
        return self._stands[1] if self._stands else self._group.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._group.epoch = value

    @property  # type: ignore[misc] # what evaluates is the group's to choose
    def eval_model(self) -> nn.Module:
        if self._evaluated is not None:
            return self._evaluated
        evaluated = self._group.eval_model
        assert isinstance(evaluated, StackedModel)
        return evaluated.solos[self.index]

    def leave(self, evaluated: nn.Module) -> None:
        """Keep what the group goes on to change: the member is evaluated with this model, and stands where it is."""
        self._evaluated = evaluated
        self._stands = self._group.iter, self._group.epoch

    def gather(self, index: int) -> None:
        """Be evaluated with the group again, under this number."""
        self._evaluated, self.index = None, index


class _Cut:
    """The last hook of a fused group: members that have stopped leave it."""

    priority = "LOWEST"

    def after_train_iter(self, runner: FusedRunner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        runner.cut()

    def after_train_epoch(self, runner: FusedRunner) -> None:
        runner.cut()

    def after_val(self, runner: FusedRunner) -> None:
        if runner.training:
            runner.cut()

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        """There is none."""
