"""Member of a stack: one run, whose parts are views of the tensors of the stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from trainyard.data import Loader
from trainyard.data.lengths import exact_length
from trainyard.errors import PlacesDiffer, counted
from trainyard.fused.lanes import Lane
from trainyard.fused.model import StackedModel
from trainyard.fused.optim import StackedOptimizer
from trainyard.optim.identity import Beginning
from trainyard.runner.loops import TrainLoop
from trainyard.runner.member import Member, member_arguments
from trainyard.runner.parts import Parts
from trainyard.runner.state import Start
from trainyard.step.step import AccumulatedStep

if TYPE_CHECKING:
    from trainyard.fused.runner import FusedRunner
    from trainyard.track.sweep_position import SweepPosition


class Ahead(NamedTuple):
    """Distance by which a member is ahead of the count of its stack; negative if it is behind.

    Attributes:
        iters: iterations.
        epochs: epochs of the data.
        batches: batches within an epoch, from 0 and fewer than an epoch has; 0 if the epochs of both end together.
        since: the stack's count of iterations when the member came to its position.
    """

    iters: int = 0
    epochs: int = 0
    batches: int = 0
    since: int = 0

    @property
    def apart(self) -> bool:
        """Whether the member is at another position than the stack."""
        return (self.iters, self.epochs, self.batches) != (0, 0, 0)


class StackMember(Member):
    """A member whose model, optimizer, schedule and states are its rows of those of the stack.

    Its checkpoints are those of a single run.

    Args:
        stack: the Runner that trains all members.
        index: see below.
        settings: the arguments of the Runner that would train this member alone, by name.

    Attributes:
        index: the member's row among those that still train.
        parts: builds the member's own model, optimizer and schedule, which are then stacked.
        lane: the member's random generators.
        ahead: the distance by which the member is ahead of the count of the stack.
        epoch_due: whether the end of an epoch, at which the member's checkpoint was saved, is not counted yet.
        number: its number among all members that the stack has had.
        position: its position in its sweep; None without a sweep.
        dismissed: whether it was requested to end early.
        data_seed: the seed of the order of its data; that of another member if it continues from that member.
    """

    def __init__(self, stack: FusedRunner, index: int, settings: Mapping[str, Any]) -> None:
        super().__init__(**member_arguments(settings))
        self.join(stack)
        self.index = index
        self.parts = MemberParts(stack, settings, self)
        self.lane = Lane()
        self._stack = stack
        self._evaluated: nn.Module | None = None
        self._left_at: tuple[int, int, int] | None = None
        self.ahead = Ahead()
        self.epoch_due = False
        self.dismissed = False
        self.data_seed = self.seed
        self.number = index
        self.position: SweepPosition | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.parts.settings

    @property
    def model(self) -> nn.Module:
        return self.parts.model

    @property
    def eval_model(self) -> nn.Module:
        if self._evaluated is not None:
            return self._evaluated
        evaluated = self._stack.eval_model
        assert isinstance(evaluated, StackedModel)
        return evaluated.models[self.index]

    @property
    def optimizer(self) -> MemberOptimizer:
        return MemberOptimizer(self._stack.optimizer, self.index, self._stack.optimizer_kind, self._stack.stack)

    @cached_property
    def beginning(self) -> Beginning:
        return Beginning.of(self.model, self.optimizer)  # what a stack trains does not change

    @property
    def schedule(self) -> Any:
        schedule = self._stack.schedule
        return None if schedule is None else schedule.member(self.index)

    @property
    def iter(self) -> int:
        return self._left_at[0] if self._left_at else self._stack.iter + self.ahead.iters

    @property
    def epoch(self) -> int:
        return self._left_at[1] if self._left_at else self._stack.clock.position(self.ahead)[0]

    @property
    def batches_done(self) -> int:
        return self._left_at[2] if self._left_at else self._stack.clock.position(self.ahead)[1]

    @property
    def loop(self) -> TrainLoop:
        return self.parts.train_loop

    @property
    def due(self) -> bool:
        if not self._stack.training:
            return True
        return not self.vacant and (not self._stack.lanes_differ or self.validated_here)

    @property
    def validated_here(self) -> bool:
        """Whether a validation follows at the member's position in the training."""
        loop: Any = self.loop
        return bool(loop.validates_after(self.count)) if isinstance(loop, TrainLoop) else True

    @property
    def count(self) -> int:
        """Epochs, or iterations, that the member has finished, as its loop counts."""
        return self.epoch if self.loop.unit == "epoch" else self.iter

    @property
    def ends_at(self) -> int | None:
        """The count of the stack at which the training of the member ends; None if the loop does not define it."""
        loop = self.loop
        if not isinstance(loop, TrainLoop):
            return None
        return loop.length - (self.ahead.epochs if loop.unit == "epoch" else self.ahead.iters)

    @property
    def at_end(self) -> bool:
        """Whether the member's training has reached its end, its last validation included."""
        return self.vacant or (isinstance(self.loop, TrainLoop) and self.count >= self.loop.length)

    @property
    def trained(self) -> str:
        """The length of the member's training, in words."""
        return counted(self.count, "epoch" if self.loop.unit == "epoch" else "iteration")

    def loop_state(self) -> dict[str, Any]:
        state = super().loop_state()
        return state | {"val_due": state["val_due"] and self.due}

    def begin(self) -> None:
        """Start at the beginning of the training, regardless of the count of the stack."""
        self.ahead = self._stack.clock.distance(0, 0, 0)

    def load_reading(self, reading: dict[str, Any], done: int) -> None:
        if not self._stack.placed:
            super().load_reading(reading, done)

    def load_position(self, state: Mapping[str, Any], done: int) -> None:
        """Go to the position of a checkpoint; the stack goes to the position of the first one.

        Raises:
            PlacesDiffer: the others are at another position in their epoch, or have already been validated there.
        """
        stack = self._stack
        if not stack.placed:
            super().load_position(state, done)
            stack.placed = True
        self.ahead = stack.clock.distance(state["iter"], state["epoch"], done)
        self.epoch_due = bool(done) and done != stack.batches_done and done == exact_length(stack.loader("train"))
        pending, loop = state["loop"]["val_due"], stack.train_loop
        if pending != loop.val_due and self.validated_here:
            raise PlacesDiffer("a validation is pending for only some of the members")
        loop.val_due = loop.val_due or pending

    def step_state(self) -> dict[str, Any]:
        step, index = self._stack.step, self.index
        of_member = getattr(step.precision, "member_state_dict", None)
        state: dict[str, Any] = {"precision": of_member(index) if of_member else step.precision.state_dict()}
        if isinstance(step, AccumulatedStep):
            gathered = [parameter.grad for parameter in step.parameters]
            pending = any(gradient is not None for gradient in gathered)
            own = [None if gradient is None else gradient[index] for gradient in gathered]
            state["gradients"] = own if pending else None
            state["group"] = step.group_state(pending, index)
        return state

    def load_step_state(self, state: dict[str, Any]) -> None:
        step, index = self._stack.step, self.index
        step.check_group(state)
        of_member = getattr(step.precision, "load_member_state_dict", None)
        if of_member:
            of_member(index, state["precision"])
        else:
            step.precision.load_state_dict(state["precision"])
        if isinstance(step, AccumulatedStep):
            step.load_group_state(state, index, len(self._stack.members))
        for parameter, gradient in zip(step.parameters, state.get("gradients") or [], strict=False):
            if gradient is not None:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad[index] = gradient.to(parameter.device)

    def random_state(self, process: dict[str, Any]) -> dict[str, Any]:
        return self.lane.state(process)

    def load_random_state(self, state: dict[str, Any]) -> None:
        if self._stack.training:
            self.lane.begin_anew(state)
            return
        if self is self._stack.host:
            super().load_random_state(state)
        self.lane.begin(state)

    def hook_states(self) -> dict[str, dict[str, Any]]:
        return self._stack.dispatch.state_dict(self.index)

    def load_hook_states(self, states: Mapping[str, dict[str, Any]]) -> None:
        self._stack.dispatch.load_state_dict(states, self.index)

    def left(self, start: Start, common: Start) -> Start:
        """Return the checkpoint for a member that left its stack before the checkpoint that others continue from.

        It contains the weights, results and random generators of the member. Everything else comes from the
        common checkpoint, so that the rows of the stack match until the member is removed again.
        """
        own = start.state
        self._left_at = own["iter"], own["epoch"], own.get("batches_done", 0)
        state = {**common.state, **{key: own[key] for key in ("seed", "model", "member", "random")}}
        if "eval_model" in state:
            state["eval_model"] = own.get("eval_model", own["model"])
        return replace(start, state=state)

    def leave(self, evaluated: nn.Module) -> None:
        """Keep a copy of the state that the stack will change: the model to evaluate, and the position of the
        member."""
        self._evaluated = evaluated
        self._left_at = self.iter, self.epoch, self.batches_done

    def gather(self, index: int) -> None:
        """Evaluate with the stack again, as this row of it."""
        self._evaluated, self.index = None, index


class MemberParts(Parts):
    """Builder of the parts of a member; the data is shared by the stack."""

    def __init__(self, stack: FusedRunner, settings: Mapping[str, Any], member: StackMember) -> None:
        super().__init__(settings, stack.device, stack.strategy, [member])
        self._stack = stack
        self._member = member

    @cached_property
    def data(self) -> Any:
        return self._stack.data

    @property
    def optimizer(self) -> Any:
        return self._member.optimizer

    def loader(self, split: str) -> Loader:
        return self._stack.loader(split)


class MemberOptimizer:
    """View of a member's rows of a stacked optimizer, as a schedule and a checkpoint read an optimizer.

    Attributes:
        kind: the name of the class that the optimizer of a single run has.
    """

    def __init__(self, stacked: StackedOptimizer, index: int, kind: str, model: StackedModel) -> None:
        self._stacked = stacked
        self._model = model
        self._index = index
        self.kind = kind
        self.defaults = stacked.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._stacked.member_param_groups(self._index)

    @property
    def parameter_names(self) -> list[list[str]]:
        """The names, by group, that the parameters have in the member's model."""
        names = self._model.names
        return [[names[id(stack)] for stack in group["params"]] for group in self._stacked.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return self._stacked.member_state_dict(self._index)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stacked.load_member_state_dict(self._index, state)
