"""The Runner of a stack: K members trained by one program."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from trainyard import rng_state
from trainyard.batch import samples, samples_of_each
from trainyard.config.compiling import compile_arguments
from trainyard.data import Loader
from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.clock import LaneClock
from trainyard.fused.cut import Cut
from trainyard.fused.feed import Feed
from trainyard.fused.lanes import Lanes
from trainyard.fused.loader import stack_loader
from trainyard.fused.member import StackMember
from trainyard.fused.metrics import stack_metrics
from trainyard.fused.model import StackedModel
from trainyard.fused.occupancy import Occupancy, check_override, models_of, vacancy
from trainyard.fused.optim import StackedOptimizer, stack_optimizers
from trainyard.fused.schedule import stack_schedules
from trainyard.fused.verification import StackVerification
from trainyard.metrics import Metric
from trainyard.models.base import uncapturable
from trainyard.optim.several import OptimizerDict
from trainyard.rng import derive
from trainyard.runner.arguments import arguments
from trainyard.runner.dispatch import Dispatch, build_hook, build_hooks
from trainyard.runner.kept_states import KeptStates
from trainyard.runner.runner import Runner
from trainyard.runner.snapshot import Snapshot
from trainyard.runner.state import Start, position_of, restore_best
from trainyard.step.precision import make_precision
from trainyard.step.stacked import StackedScaledAutocast, stack_clips
from trainyard.step.step import Step, make_step
from trainyard.track import RunInfo, Tracker

log = logging.getLogger(__name__)

Config = Mapping[str, Any] | DictConfig


class FusedRunner(Runner):
    """Trains K members as one program, each as its own Runner would.

    Each member builds its model with its own seed, its optimizer and its schedule, which are then stacked; afterwards,
    the member has views of the stacks. The data, the loops, the hooks and the metrics are those of the first member.

    Args:
        configs: the configs of the members, which may differ in the keys of `trainyard.fused.train.ALLOWED`. None: a
            lane is free.
        infos: the records of the members for MLflow; None: records with only the names of the members.
        tracker: uploads the journals of all members to MLflow.
        feed: the source of further members, for lanes that become free.

    Raises:
        Unfusable: (in `prepare`) a part cannot be stacked.
    """

    members: Sequence[StackMember]
    all_members: Sequence[StackMember]

    def __init__(
        self,
        configs: Sequence[Config | None],
        *,
        infos: Sequence[RunInfo] | None = None,
        tracker: Tracker | None = None,
        feed: Feed | None = None,
    ) -> None:
        first = next(config for config in configs if config is not None)
        given = iter(infos or [])
        self._configs = configs
        self._infos = [None if config is None else next(given, None) for config in configs]
        self._verification = StackVerification()
        self.occupancy = Occupancy(self, feed)
        self.clock = LaneClock(self)
        self._fed = feed is not None
        self.kept_states = KeptStates() if self._fed else None
        self._ended: list[int] = []
        self.placed = False
        self.lanes_differ = False
        self._resumed = [False] * len(configs)
        self._positions: list[tuple[int, int]] = [(0, 0)] * len(configs)
        self.next_number = sum(config is not None for config in configs)
        super().__init__(**arguments(first) | {"tracker": tracker})
        self.all_members = [member for member in self.members if not member.vacant]
        self.number(range(self.next_number))
        if compile_arguments(self.settings["compile"]) is not None:
            raise Unfusable("compile is not supported in a stack")
        for member in self.members:
            check_override(member)
        if self.settings["activation_checkpointing"]:
            raise Unfusable("activation_checkpointing is not supported in a stack: vmap cannot repeat a forward pass")
        # An operation without a batching rule runs member by member, correctly. The probe times it.
        warnings.filterwarnings(
            "ignore", "There is a performance drop because we have not yet implemented the batching"
        )

    def number(self, numbers: Sequence[int]) -> None:
        """Set the numbers of the members, in the order of lanes, among all members of the stack."""
        for member, number in zip(self.all_members, numbers, strict=True):
            member.number = number
        self.all_members = sorted(self.all_members, key=lambda member: member.number)

    def prepare(self, mode: str = "train") -> None:
        prepared = "train" in self._prepared
        super().prepare(mode)
        if mode == "train" and not prepared:
            self.placed = True
            self.clock.begin(self._resumed, joinable=self._fed)
            self._share_generators()
            self._verification.begin(self)

    def seed_generators(self) -> None:
        super().seed_generators()
        for member in self.members:
            member.lane.begin(derive(member.seed, "train"))

    @contextmanager
    def seeded(self, purpose: str, *index: int) -> Iterator[None]:
        seeds = [derive(member.seed, purpose, *index) for member in self.members]
        with super().seeded(purpose, *index), self.lanes.seeded(seeds):
            yield

    def starting_points(self) -> list[Start | None]:
        """Return the checkpoints of the members. Members that ended before the others take their rows from these
        checkpoints."""
        starts = super().starting_points()
        found = {index: start for index, start in enumerate(starts) if start is not None and start.resumes}
        self._resumed = [k in found for k in range(len(starts))]
        self._positions = [position_of(found[k].state) if k in found else (0, 0) for k in range(len(starts))]
        ended = [index for index, start in found.items() if start.state["member"]["stop_reason"] is not None]
        if ended:
            furthest = max(found, key=lambda index: (found[index].state["iter"], index not in ended))
            for index in ended:
                starts[index] = self.members[index].left(found[index], found[furthest])
                self._positions[index] = self._positions[furthest]
            self._ended = ended
        return starts

    def _share_generators(self) -> None:
        if self._fed:
            self.lanes.separate()
        else:
            self.lanes.share()

    @property
    def average(self) -> StackedModel | None:
        """Stack of the evaluated models, if these are not the trained ones."""
        return models_of(self._eval_model)

    @cached_property
    def train_loop(self) -> Any:
        return copy.copy(super().train_loop)  # its length becomes that of the stack

    def make_members(self) -> Sequence[StackMember]:
        return [
            vacancy(self, index, self.settings)
            if config is None
            else StackMember(self, index, {**self.settings, **arguments(config), "info": info})
            for index, (config, info) in enumerate(zip(self._configs, self._infos, strict=True))
        ]

    def snapshot(self) -> Snapshot:
        stack = self.stack  # of which the members' tensors are views
        return Snapshot(dict(stack.named_parameters()), dict(stack.named_buffers()), stack.code, self.step)

    @property
    def host(self) -> StackMember:
        """The member that uses the generators of Python and NumPy of this process: the first one that still trains."""
        return next((member for k, member in enumerate(self.members) if k not in self._ended), self.members[0])

    @property
    def stacked(self) -> bool:
        return True

    # -- the parts, stacked --------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> nn.Module:
        own_batches = getattr(self.loader("train"), "stacked", False)
        models = [member.model for member in self.members]
        if marked := uncapturable(models[0]):
            raise Unfusable(f"a step of {marked} reads or changes Python state (capturable = False)")
        return StackedModel(models, own_batches=own_batches, lanes=self.lanes, joinable=self._fed)

    @cached_property
    def lanes(self) -> Lanes:
        """The members' random generators."""
        return Lanes([member.lane for member in self.members])

    @property
    def stack(self) -> StackedModel:
        """Stacked model."""
        assert isinstance(self.model, StackedModel)
        return self.model

    @cached_property
    def optimizer(self) -> StackedOptimizer:
        stacks: Iterator[Any] = self.stack.parameters()
        stacked: dict[Tensor, nn.Parameter] = dict(zip(self.members[0].model.parameters(), stacks, strict=True))
        optimizers = [member.parts.make_optimizer() for member in self.members]
        if isinstance(optimizers[0], OptimizerDict):
            raise Unfusable("the model has several optimizers")
        self.optimizer_kind = type(optimizers[0]).__name__
        optimizer = stack_optimizers(optimizers, stacked)
        optimizer.joinable = self._fed
        return optimizer

    @cached_property
    def schedule(self) -> Any:
        return stack_schedules([member.parts.make_schedule() for member in self.members])

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        self._alone = super().metrics
        return stack_metrics(self._alone, len(self.members))

    @cached_property
    def dispatch(self) -> Dispatch:
        hooks = build_hooks(self.hook_settings)
        for name, hook in hooks.items():
            if not getattr(hook, "stackable", False):
                raise Unfusable(f"hook.{name} ({type(hook).__name__}) supports one member only")
            nodes = [member.parts.hook_settings[name] for member in self.members]
            if any(node != nodes[0] for node in nodes):
                hook.stack([build_hook(node, name) for node in nodes])
        return Dispatch(hooks | self.added_hooks | {"verification": self._verification, "cut": Cut()}, self.own_stages)

    @cached_property
    def step(self) -> Step:
        kind = self.settings["precision"]
        fp16 = kind == "fp16"
        precision = StackedScaledAutocast(self.device, len(self.members)) if fp16 else make_precision(kind, self.device)
        settings = [member.parts.settings for member in self.members]
        clip = stack_clips([own["clip_grad_norm"] for own in settings], [own["clip_grad_value"] for own in settings])
        step = make_step(
            self.stack.train_step,
            self.optimizer,
            precision=precision,
            clip=clip,
            accumulate=self.settings["accumulate"],
            by=self.settings["accumulate_by"],
            samples=samples_of_each if self.stack.own_batches else samples,
            stacked=True,
        )
        return self.captured(step, self.stack.code)

    def loader(self, split: str) -> Loader:
        loader = super().loader(split)
        if split != "train" and getattr(loader, "stacked", False):
            if len({member.seed for member in self.members}) == 1:
                raise PlacesDiffer("overfit validates on the batches of one epoch, in one order for all members")
            raise Unfusable(f"the {split} batches are in a different order for each member")
        return loader

    def second_loader(self) -> Loader:
        own: Any = self.loader("train")
        other: Any = super().second_loader()
        if other is not own and getattr(other, "stacked", False):
            other.place(own.ahead, own.seeds, own.length)  # the members may have changed since it was created
        return other  # type: ignore[no-any-return]

    def whole_loader(self, split: str) -> Loader:
        apart = split == "train" and (self._fed or len(set(self._positions)) > 1)
        return stack_loader(super().whole_loader(split), [member.seed for member in self.members], apart=apart)

    def learning_rates(self) -> list[float]:
        rates: list[float] = self.optimizer.param_groups[0]["lr"].tolist()
        return rates

    # -- members that end before the others ----------------------------------------------------------------------------

    def leaving(self) -> list[int]:
        """Return the lanes of members that have stopped, pause or are at their end, and those that are free."""
        over = self.clock.at_an_end()
        return [
            index
            for index, member in enumerate(self.members)
            if (over and member.at_end) or (member.leaves and (over or not self._epoch_follows(member)))
        ]

    def cut(self) -> None:
        """Remove the members that have stopped, pause or are at their end from the stacks, unless this applies to all.

        With a feed, other members take their lanes; free lanes are removed when the feed is closed.
        """
        self.occupancy.obey()
        leaving = self.leaving()
        if not leaving or self.interrupted:
            return
        if self._fed:
            if self.occupancy.open or any(not self.members[index].vacant for index in leaving):
                self.occupancy.exchange()
            if self.interrupted or self.occupancy.open or not self.clock.open:
                return
            free = [index for index, member in enumerate(self.members) if member.vacant]
            if 0 < len(free) < len(self.members):
                assert self.occupancy.feed is not None
                self.occupancy.feed.cutting()
                self._remove(free)
                self.occupancy.place()
        elif len(leaving) < len(self.members):
            self.leave(leaving)
            self._remove(leaving)

    def _epoch_follows(self, member: StackMember) -> bool:
        """Return whether only the counting of its last epoch remains in the training of the member."""
        return not member.vacant and member.at_end and not self.train_loop.val_due

    def leave(self, leaving: Sequence[int]) -> None:
        """Save the state of members that end, and log the reason."""
        if leaving:
            self.call("before_leave", leaving=leaving)
        for index in leaving:
            member = self.members[index]
            pauses = "a command or the sweep has ended it" if member.dismissed else "it is paused"
            reason = member.stop_reason or (pauses if member.paused else f"it has completed {member.trained}")
            log.info("%s leaves the stack: %s.", member.info.name, reason, extra={"member": member})

    def run_loop(self) -> None:
        super().run_loop()
        while self.occupancy.refill_all():
            super().run_loop()

    def cut_ended(self) -> None:
        """Remove the members that had already ended in the previous training of the stack."""
        ended, self._ended = self._ended, []
        if self._fed:
            self.occupancy.place()
            self.cut()
            return
        if self.lanes_differ and not self.train_loop.val_due:
            ended = [k for k, member in enumerate(self.members) if k in ended or member.at_end]
        if 0 < len(ended) < len(self.members):
            self._remove(ended)
            self._share_generators()

    def _remove(self, leaving: Sequence[int]) -> None:
        staying = [index for index in range(len(self.members)) if index not in leaving]
        if self._eval_model is not None:
            assert isinstance(self._eval_model, StackedModel)
            evaluated = list(self._eval_model.models)
            self._eval_model.keep(staying)
        else:
            evaluated = list(self.stack.models)
        self.stack.keep(staying)
        self.lanes.keep(staying)
        for index in leaving:
            self.members[index].leave(evaluated[index])
        self.members = [self.members[index] for index in staying]
        for index, member in enumerate(self.members):
            member.index = index
        kept = torch.tensor(staying)
        step = self.step
        for part in (self.optimizer, self.schedule, step, step.precision, step.clip, self.loaders["train"]):
            if hasattr(part, "keep"):
                part.keep(kept)
        for hook in self.dispatch.hooks.values():
            if hasattr(hook, "keep"):
                hook.keep(staying)
        self._restack_metrics()
        self.clock.follow()

    def load_best(self) -> None:
        """Gather the members that have not failed or paused, and load the weights of the best checkpoint of each.

        The gathered stack can be tested, but not trained further.
        """
        self._gather([member for member in self.all_members if not (member.failed or member.paused)])

    @contextmanager
    def apart(self, members: Sequence[StackMember]) -> Iterator[None]:
        """Inside the block, in which the stack does not train, use members that have left, with their best weights."""
        kept = {name: vars(self)[name] for name in ("members", "lanes", "metrics", "_eval_model", "training")}
        generators = rng_state.cpu_states()
        self.training = False
        try:
            self._gather(members)
            yield
        finally:
            vars(self).update(kept)
            rng_state.set_cpu_states(generators)

    def _gather(self, members: Sequence[StackMember]) -> None:
        self.members = members
        older = [member for member in self.members if not member.is_best(member.iter)]
        self.lanes = Lanes([member.lane for member in self.members])
        self._eval_model = StackedModel([member.eval_model for member in self.members], lanes=self.lanes)
        for index, member in enumerate(self.members):
            member.gather(index)
        for member in older:
            restore_best(member)
        self._restack_metrics()

    def _restack_metrics(self) -> None:
        self.__dict__["metrics"] = stack_metrics(self._alone, len(self.members))
