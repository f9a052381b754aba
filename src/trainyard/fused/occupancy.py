"""Occupancy of the lanes of a stack: members leave, join and are copied row by row, in place.

No tensor changes its address or shape, so that a captured step stays valid.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from trainyard.errors import TrainyardError, Unfusable
from trainyard.fused import places
from trainyard.fused.feed import Feed, LaneJob, Span
from trainyard.fused.lanes import Lane
from trainyard.fused.member import StackMember
from trainyard.fused.model import StackedModel
from trainyard.optim import without_dynamo
from trainyard.rng import derive
from trainyard.runner import override
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
        feed: the feed; None if no member joins.
    """

    def __init__(self, runner: FusedRunner, feed: Feed | None) -> None:
        self._runner = runner
        self.feed = feed
        self._busy = self._lanes = 0
        self._asked: dict[int, bool] = {}  # members that are to leave, by number, and whether they pause

    def count(self) -> None:
        """Count the training lanes in the epoch that begins, and all lanes, as long as jobs may come."""
        if self.open:
            self._busy += sum(not member.vacant for member in self._runner.members)
            self._lanes += len(self._runner.members)

    def tell(self) -> None:
        """Log the number of epochs, summed over the lanes, in which lanes trained while jobs could come."""
        if self._lanes:
            log.info(
                "Lanes were used in %d of %d epochs in which jobs could join (summed over the lanes).",
                self._busy,
                self._lanes,
            )

    def obey(self) -> None:
        """Let members leave that were asked to: immediately, or, if they pause, as soon as they can continue in a lane
        later."""
        if self.feed is None:
            return
        self._asked.update(self.feed.asked())
        for member in self._runner.members if self._asked else ():
            pauses = None if member.vacant else self._asked.get(member.number)
            if pauses is None or member.leaves or member.at_end or (pauses and not self._runner.clock.resumable):
                continue
            member.paused, member.dismissed = True, not pauses
            del self._asked[member.number]

    @property
    def open(self) -> bool:
        """Whether free lanes are, or will be, filled."""
        return self.feed is not None and not self.feed.closed

    def release(self, leaving: Sequence[int]) -> None:
        """Free the lanes of these members, whose last checkpoints are saved."""
        runner = self._runner
        left = [runner.members[k] for k in leaving]
        for k in leaving:
            member = runner.members[k]
            keeps = not (member.paused or member.failed)  # the others are tested
            evaluated = runner.stack.vacate(k, keeps=keeps)
            if runner.average is not None:
                evaluated = runner.average.vacate(k, keeps=keeps)
            member.leave(evaluated)
            lane, member.lane = member.lane, member.lane.copy()
            runner.members = [*runner.members[:k], self._vacancy(member, lane), *runner.members[k + 1 :]]
        self._refill_hooks(leaving)
        runner.clock.follow()
        if self.feed is not None:
            self.feed.left(left)

    def exchange(self) -> None:
        """Free the lanes of members that leave, and give free lanes to the next jobs, where these may join."""
        runner = self._runner
        leaving = runner.leaving()
        while leaving and not runner.interrupted:
            occupied = [k for k in leaving if not runner.members[k].vacant]
            if occupied:
                runner.leave(occupied)
                self.release(occupied)
            filled = self.fill() if runner.clock.open else []
            leaving = [k for k in runner.leaving() if k in filled]  # one may have been at its end when it joined

    def place(self) -> None:
        """Report to the feed in which lanes all members train from here on."""
        self._place([k for k, member in enumerate(self._runner.members) if not member.vacant])

    def _place(self, lanes: Sequence[int]) -> None:
        members = self._runner.members
        if self.feed is not None:
            self.feed.placed([Span(m, k, len(members), m.epoch, m.iter) for k in lanes if (m := members[k])])

    def fill(self, *, wait: bool = False) -> list[int]:
        """Give free lanes to the next jobs; return the lanes."""
        filled: list[int] = []
        while self.feed is not None and (free := [k for k, each in enumerate(self._runner.members) if each.vacant]):
            jobs = self.feed.take(len(free), wait=wait and not filled)
            if not jobs:
                break
            filled += self._join(dict(zip(free, jobs, strict=False)))
        if filled:
            self._runner.clock.count_epochs()
        return filled

    def _join(self, jobs: Mapping[int, LaneJob]) -> list[int]:
        """Let jobs start or continue in free lanes, report this, and return the lanes of the jobs that could."""
        runner, joined = self._runner, self._admit(jobs)
        if joined:
            runner.call("after_join", joined=joined)
            for k in joined:
                log.info("%s is in lane %d.", runner.members[k].info.name, k, extra={"member": runner.members[k]})
            self._place(joined)
        return joined

    def _admit(self, jobs: Mapping[int, LaneJob]) -> list[int]:
        """Start or continue jobs in free lanes; return the lanes in which this was possible."""
        runner = self._runner
        free = {k: runner.members[k] for k in jobs}
        starts: dict[int, Start | None] = {}
        for k, job in jobs.items():
            try:
                starts[k] = self._seat(k, job)
            except TrainyardError as error:
                self._refuse(job, error)
        runner.clock.follow()
        self._refill_hooks([*starts])
        for k, start in dict(starts).items():
            try:
                done = start.state["iter"] if start is not None and start.resumes else 0
                places.check_accumulation(runner, [done - runner.iter])
                restore(runner.members[k], start)
            except TrainyardError as error:
                self._refuse(jobs[k], error)
                self._unseat(k, free[k])
                del starts[k]
                continue
            runner.members[k].tell_notes()
            if runner.average is not None and (start is None or not start.resumes):
                runner.average.copy_row(k, runner.stack, k)
        runner.clock.follow()
        return [*starts]

    def _refuse(self, job: LaneJob, error: TrainyardError) -> None:
        assert self.feed is not None
        name = "A job" if job.info is None else job.info.name
        log.warning("%s cannot train in this stack: %s.", name, str(error).strip().removesuffix("."))
        self.feed.refused(job, error)

    def _unseat(self, k: int, before: StackMember) -> None:
        """Free a lane whose member could not be restored."""
        runner, member = self._runner, self._runner.members[k]
        before.lane, before.ahead = member.lane, member.ahead
        runner.members = [*runner.members[:k], before, *runner.members[k + 1 :]]
        runner.all_members = [each for each in runner.all_members if each is not member]
        member.journal.close()
        self._refill_hooks([k])

    def refill_all(self) -> bool:
        """Give all lanes to the next jobs, where all members have ended; return whether there were any."""
        runner = self._runner
        if not self.open or runner.interrupted:
            return False
        last = [k for k, member in enumerate(runner.members) if not member.vacant]
        runner.leave(last)
        self.release(last)
        group = runner.settings["accumulate"] if runner.train_loop.unit == "iter" else 1
        if runner.batches_done or runner.iter % group:
            runner.go_to(int(runner.epoch) + 1, 0, -(-runner.iter // group) * group)
        return bool(self.fill(wait=True))

    def copy(self, source: int, target: int) -> None:
        """Copy the state of a lane to another: weights, states, numbers, schedule, data order and generators.

        The target keeps its directory, its results and its end. Both behave identically until one is changed.

        Args:
            source, target: lanes of members that train.

        Raises:
            PlacesDiffer: a part of the training does not keep a separate position for each member.
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
            rows = runner.clock.rows_ahead(one.ahead)
            runner.schedule.put({target: copy.deepcopy(runner.schedule.member(source))}, {target: rows})
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
            TrainyardError: the job cannot train in this stack; the lane stays free.
        """
        runner = self._runner
        free = runner.members[k]
        settings = {**runner.settings, **arguments(job.config), "info": job.info}
        member = StackMember(runner, k, settings)
        member.position = job.position
        member.number = runner.next_number if job.number is None else job.number
        check_override(member)
        start = starting_point(member)
        model, optimizer = member.parts.model, member.parts.make_optimizer()
        if type(optimizer).__name__ != runner.optimizer_kind:
            raise Unfusable(
                f"the optimizers are of several classes: {runner.optimizer_kind}, {type(optimizer).__name__}"
            )
        if _sizes(optimizer) != _sizes(runner.optimizer):
            raise Unfusable("the optimizers differ in their parameter groups")
        own = member.parts.settings
        clip = stack_clips([own["clip_grad_norm"]], [own["clip_grad_value"]])
        if type(clip) is not type(runner.step.clip):
            raise Unfusable("the members differ in gradient clipping")
        member.begin()
        places.check_joining(runner, member)
        runner.stack.put(k, model)
        if runner.average is not None:
            runner.average.copy_row(k, runner.stack, k)
        runner.optimizer.load_member_state_dict(k, without_dynamo.method(optimizer, "state_dict")())
        schedule: Any = member.parts.make_schedule()
        if (schedule is None) != (runner.schedule is None):
            raise Unfusable("some members have a schedule and some do not")
        if schedule is not None:
            runner.schedule.put({k: schedule}, {k: runner.clock.rows_ahead(member.ahead)})
        if hasattr(runner.step.clip, "put"):
            runner.step.clip.put(k, clip)
        if hasattr(runner.step.precision, "reset_member"):
            runner.step.precision.reset_member(k)
        member.lane = free.lane
        member.lane.begin_anew(derive(member.seed, "train"))
        member.lane.hosted = False
        runner.members = [*runner.members[:k], member, *runner.members[k + 1 :]]
        runner.all_members = [*runner.all_members, member]
        runner.next_number = max(runner.next_number, member.number + 1)
        member.open(runner.tracker, resume=bool(member.resume))
        return start

    def _vacancy(self, left: StackMember, lane: Lane) -> StackMember:
        """Return the placeholder of a lane that has become free."""
        member = vacancy(self._runner, left.index, left.parts.settings)
        parts: dict[str, Any] = vars(member.parts)
        parts["model"], parts["train_loop"] = self._runner.stack.models[left.index], left.loop
        member.ahead, member.lane = left.ahead, lane
        return member

    def _refill_hooks(self, lanes: Sequence[int]) -> None:
        runner = self._runner
        hooks: Mapping[str, Any] = runner.dispatch.hooks
        for name, hook in hooks.items():
            nodes = {k: runner.members[k].parts.hook_settings.get(name) for k in lanes if not runner.members[k].vacant}
            own = {k: None if (node := nodes.get(k)) is None else build_hook(node, name) for k in lanes}
            hook.refill(runner, own)


def _sizes(optimizer: Optimizer) -> list[int]:
    """Return the number of parameters in each group."""
    return [len(group["params"]) for group in optimizer.param_groups]


def check_override(member: StackMember) -> None:
    """Check that a member continues with batches of the same size.

    Raises:
        Unfusable: it does not.
    """
    if override.BATCH_SIZE in override.parse(member.settings[override.KEY]):
        raise Unfusable(f"resume_override=[{override.BATCH_SIZE}] is not supported in a stack")


def vacancy(runner: FusedRunner, index: int, settings: Mapping[str, Any]) -> StackMember:
    """Return the placeholder of a free lane: a member that writes nothing.

    Args:
        runner: the stack's.
        index: the lane.
        settings: the settings of any member.
    """
    nothing = {"work_dir": None, "resume": False, "resume_override": None, "load_from": None}
    member = StackMember(runner, index, {**settings, **nothing, "info": RunInfo("a free lane")})
    member.vacant = True
    member.stop("the lane is free", failed=True)
    return member


def models_of(stacked: nn.Module | None) -> StackedModel | None:
    """Return the stack of the evaluated models; None if the trained ones are evaluated."""
    assert stacked is None or isinstance(stacked, StackedModel)
    return stacked
