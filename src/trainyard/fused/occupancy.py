"""Occupancy of a stack's lanes: members leave, join and are copied by rows, in place.

No tensor gets another address or shape, so that a captured step stays valid.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from trainyard.errors import TrainyardError, Unfusable
from trainyard.fused import places
from trainyard.fused.feed import Feed, LaneJob
from trainyard.fused.lanes import Lane
from trainyard.fused.member import StackMember
from trainyard.fused.model import StackedModel
from trainyard.rng import derive
from trainyard.runner.arguments import arguments
from trainyard.runner.dispatch import build_hook
from trainyard.runner.state import Start, restore, starting_point
from trainyard.step.stacked import stack_clips
from trainyard.track import RunInfo

if TYPE_CHECKING:
    from trainyard.fused.runner import FusedRunner

log = logging.getLogger(__name__)


class Occupancy:
    """The members in a stack's lanes, and the feed from which free lanes are filled.

    Args:
        runner: the stack's.
        feed: None where no member joins.
    """

    def __init__(self, runner: FusedRunner, feed: Feed | None) -> None:
        self._runner = runner
        self.feed = feed

    @property
    def open(self) -> bool:
        """Whether free lanes are, or will be, filled."""
        return self.feed is not None and not self.feed.closed

    def release(self, leaving: Sequence[int]) -> None:
        """Free the lanes of these members, whose last checkpoints are saved."""
        runner = self._runner
        for k in leaving:
            member = runner.members[k]
            evaluated = runner.stack.vacate(k)
            if runner.average is not None:
                evaluated = runner.average.vacate(k)
            member.leave(evaluated)
            lane, member.lane = member.lane, member.lane.copy()
            runner.members = [*runner.members[:k], self._vacancy(member, lane), *runner.members[k + 1 :]]
            if self.feed is not None:
                self.feed.left(member, k)
        self._refill_hooks(leaving)
        runner.clock.follow()

    def fill(self, *, wait: bool = False) -> list[int]:
        """Give free lanes to the next jobs, between two epochs; return the lanes."""
        runner, feed = self._runner, self.feed
        filled: list[int] = []
        starts: dict[int, Start | None] = {}
        for k, member in enumerate(runner.members):
            while feed is not None and member.vacant and k not in starts:
                job = feed.take(wait=wait and not starts)
                if job is None:
                    break
                try:
                    starts[k] = self._seat(k, job)
                    filled.append(k)
                except TrainyardError as error:
                    log.warning("A job cannot train in this stack: %s", error)
                    feed.refused(job, error)
        if not filled:
            return []
        runner.clock.follow()
        self._refill_hooks(filled)
        for k, start in starts.items():
            restore(runner.members[k], start)
            if runner.average is not None and (start is None or not start.resumes):
                runner.average.copy_row(k, runner.stack, k)
        runner.clock.follow()
        for k in filled:
            member = runner.members[k]
            log.info("%s begins in lane %d.", member.info.name, k, extra={"member": member})
            if feed is not None:
                feed.joined(member, k, len(runner.members))
        return filled

    def refill_all(self) -> bool:
        """Give all lanes to the next jobs, where all members have ended; return whether there were any."""
        runner = self._runner
        if not self.open or runner.interrupted:
            return False
        last = [k for k, member in enumerate(runner.members) if not member.vacant]
        runner.leave(last)
        self.release(last)
        if runner.batches_done:
            runner.go_to(int(runner.epoch) + 1, 0, runner.iter)
        return bool(self.fill(wait=True))

    def copy(self, source: int, target: int) -> None:
        """Let a lane go on as another one does: with its weights, states, numbers, schedule, data order and generators.

        The target keeps its directory, its results and its end. Nothing that the two do until one is changed differs.

        Args:
                source, target: lanes of members that train.

        Raises:
            PlacesDiffer: a part of the training does not keep a place for each member.
        """
        runner = self._runner
        places.check_lanes(runner)
        one, other = runner.members[source], runner.members[target]
        runner.stack.copy_row(target, runner.stack, source)
        if runner.average is not None:
            runner.average.copy_row(target, runner.average, source)
        runner.optimizer.load_member_state_dict(target, runner.optimizer.member_state_dict(source))
        other.ahead, other.data_seed = one.ahead, one.data_seed
        if runner.schedule is not None:
            unit = runner.clock.schedule_unit
            runner.schedule.put({target: copy.deepcopy(runner.schedule.member(source))}, {target: one.ahead[unit]})
        other.load_step_state(one.step_state())
        if hasattr(runner.step.clip, "copy_row"):
            runner.step.clip.copy_row(target, source)
        other.lane.follow(one.lane)
        hooks: Mapping[str, Any] = runner.dispatch.hooks
        for hook in hooks.values():
            hook.copy_lane(source, target)
        runner.clock.follow()

    def _seat(self, k: int, job: LaneJob) -> Start | None:
        """Build a job's parts, copy them into the rows of a free lane, and make it a member; return its checkpoint.

        Raises:
            TrainyardError: that cannot be; the lane stays free.
        """
        runner = self._runner
        free = runner.members[k]
        settings = {**runner.settings, **arguments(job.config), "info": job.info}
        member = StackMember(runner, k, settings)
        start = starting_point(member)
        model, optimizer = member.parts.model, member.parts.make_optimizer()
        if type(optimizer).__name__ != runner.optimizer_kind:
            raise Unfusable(f"the optimizers are of several classes: {type(optimizer).__name__}")
        own = member.parts.settings
        clip = stack_clips([own["clip_grad_norm"]], [own["clip_grad_value"]])
        if type(clip) is not type(runner.step.clip):
            raise Unfusable("some members clip their gradients in another way, or not")
        member.begin()
        runner.stack.put(k, model)
        if runner.average is not None:
            runner.average.copy_row(k, runner.stack, k)
        runner.optimizer.load_member_state_dict(k, optimizer.state_dict())
        schedule: Any = member.parts.make_schedule()
        if (schedule is None) != (runner.schedule is None):
            raise Unfusable("some members have a schedule and some do not")
        if schedule is not None:
            runner.schedule.put({k: schedule}, {k: member.ahead[runner.clock.schedule_unit]})
        if hasattr(runner.step.clip, "put"):
            runner.step.clip.put(k, clip)
        if hasattr(runner.step.precision, "reset_member"):
            runner.step.precision.reset_member(k)
        member.lane = free.lane
        member.lane.begin_anew(derive(member.seed, "train"))
        member.lane.hosted = False
        runner.members = [*runner.members[:k], member, *runner.members[k + 1 :]]
        runner.all_members = [*runner.all_members, member]
        member.open(runner.tracker, resume=bool(member.resume))
        return start

    def _vacancy(self, left: StackMember, lane: Lane) -> StackMember:
        """Return what stands for a free lane: a member that writes nothing."""
        nothing = {"work_dir": None, "resume": False, "load_from": None, "info": RunInfo("a free lane")}
        member = StackMember(self._runner, left.index, {**left.parts.settings, **nothing})
        parts: dict[str, Any] = vars(member.parts)
        parts["model"], parts["train_loop"] = self._runner.stack.models[left.index], left.loop
        member.ahead, member.lane, member.vacant = left.ahead, lane, True
        member.stop("the lane is free", failed=True)
        return member

    def _refill_hooks(self, lanes: Sequence[int]) -> None:
        runner = self._runner
        hooks: Mapping[str, Any] = runner.dispatch.hooks
        for name, hook in hooks.items():
            nodes = {k: runner.members[k].parts.hook_settings.get(name) for k in lanes if not runner.members[k].vacant}
            own = {k: None if (node := nodes.get(k)) is None else build_hook(node, name) for k in lanes}
            hook.refill(runner, own)


def models_of(stacked: nn.Module | None) -> StackedModel | None:
    """Return the stack of the evaluated models; None where the trained ones are evaluated."""
    assert stacked is None or isinstance(stacked, StackedModel)
    return stacked
