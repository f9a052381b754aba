"""Clock of a stack: its own count of epochs and iterations, and how far each member is ahead of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainyard.data.lengths import exact_length
from trainyard.errors import PlacesDiffer
from trainyard.fused import places
from trainyard.fused.lane_orders import LaneOrders
from trainyard.fused.member import Ahead

if TYPE_CHECKING:
    from trainyard.fused.runner import FusedRunner


class LaneClock:
    """Synchronizes loop, schedule and data with lanes at different positions in the training.

    The loop counts for the entire stack: `runner.iter` and `runner.epoch`. Each member is a constant number of
    iterations and batches ahead of these counts (or behind, if negative) as long as it keeps its lane.

    Args:
        runner: the Runner of the stack.
    """

    def __init__(self, runner: FusedRunner) -> None:
        self._runner = runner
        self._first_end = math.inf
        self._within = False
        self._epochs_differ = False
        self._counted = -1  # the stack's iteration at which ends of the members' epochs were counted last

    def begin(self, resumed: Sequence[bool], *, joinable: bool) -> None:
        """Record the position of each lane relative to the first member that continues from a checkpoint.

        Args:
            resumed: for each member, whether it continues from a checkpoint.
            joinable: whether other members may join.

        Raises:
            PlacesDiffer: a part of the training needs all members at the same position.
            Unfusable: the members' loops differ in more than their lengths.
        """
        runner = self._runner
        for member, goes_on in zip(runner.members, resumed, strict=True):
            if not (goes_on or member.vacant):
                member.begin()
        places.check_loops([member.loop for member in runner.members], runner.settings["accumulate"])
        if joinable or any(member.ahead.apart for member in runner.members):
            places.check_lanes(runner)
        self._within = joinable and places.why_not_within(runner) is None
        self.follow()

    def follow(self) -> None:
        """Update loop, schedule and data for the current members of the lanes."""
        runner = self._runner
        loop, members = runner.train_loop, runner.members
        ends = [end for member in members if not member.vacant and (end := member.ends_at) is not None]
        self._first_end = min(ends, default=math.inf)
        if ends:
            loop.ends, loop.length = set(ends), max(ends)
        spread = any(member.ahead.apart for member in members)
        self._epochs_differ = any(member.ahead.batches for member in members)
        runner.lanes_differ = spread or len(set(ends)) > 1
        vars(loop).pop("validates_after", None)
        if spread:
            loop.validates_after = self._validates_after
        if runner.schedule is not None:
            runner.schedule.place([self.rows_ahead(member.ahead) for member in members])
        loader: Any = runner.loader("train")
        if isinstance(getattr(loader, "whole", loader), LaneOrders):
            repeats = getattr(loader, "repeat", False)  # the batches of one epoch, for all members
            ahead = [(0, 0) if repeats else (member.ahead.epochs, member.ahead.batches) for member in members]
            loader.place(ahead, [member.data_seed for member in members], exact_length(loader) or len(loader))

    def rows_ahead(self, ahead: Ahead) -> int:
        """Return how many rows of the schedule a member is ahead of the stack."""
        return ahead.iters if places.schedule_unit(self._runner) == "iter" else ahead.epochs

    def distance(self, iteration: int, epoch: int, done: int) -> Ahead:
        """Return how far a position is ahead of the position of the stack.

        Args:
            iteration: the number of completed iterations.
            epoch: the number of completed epochs.
            done: the number of completed batches in the current epoch.

        Raises:
            PlacesDiffer: the position and the stack are at different batches of their epochs, but a part of the
                training needs the same batch.
        """
        runner = self._runner
        epochs, batches = epoch - int(runner.epoch), done - runner.batches_done
        if batches:
            if (reason := places.why_not_within(runner)) is not None:
                raise PlacesDiffer(f"the members are at different batches of their epochs, and {reason}")
            length = exact_length(runner.loader("train"))
            assert length is not None
            more, batches = divmod(batches, length)
            epochs += more
        return Ahead(iteration - runner.iter, epochs, batches, runner.iter)

    def position(self, ahead: Ahead) -> tuple[int, int]:
        """Return the epoch of a member, and the batches that are done in it.

        An epoch that has just ended is counted after the validation that follows, as in a single run.
        """
        runner = self._runner
        epoch, done = int(runner.epoch) + ahead.epochs, runner.batches_done
        if not ahead.batches:
            return epoch, done
        length = exact_length(runner.loader("train"))
        assert length is not None
        done += ahead.batches
        if done < length or (done == length and runner.iter not in (self._counted, ahead.since)):
            return epoch, done
        return epoch + 1, done - length

    def count_epochs(self) -> None:
        """Count the epochs of members that end within an epoch of the stack, after the validation at their end."""
        runner = self._runner
        present = [member for member in runner.members if not member.vacant]
        if runner.train_loop.val_due or not (self._epochs_differ or any(member.epoch_due for member in present)):
            return
        length = exact_length(runner.loader("train"))
        ended = [m for m in present if m.epoch_due or (m.ahead.batches and m.batches_done == length)]
        if ended:
            self._counted = runner.iter
            for member in ended:
                member.epoch_due = False
            runner.call("after_train_epoch")

    @property
    def resumable(self) -> bool:
        """Whether a member that leaves now can continue in a lane later: at any time if members can be at different
        batches of their epochs, otherwise at the end of an epoch."""
        return self._within or (self._runner.batches_done == 0 and not self._runner.train_loop.val_due)

    @property
    def open(self) -> bool:
        """Whether members may join now, and free lanes may be removed.

        In an iteration loop, this is possible at multiples of `val_interval`, so that members are validated together.
        If this interval is longer than a training, or if members cannot be at different batches of their epochs, it is
        possible when an epoch ends for all. In an epoch loop, it is possible when an epoch ends. With `accumulate`, it
        is possible only between two groups of batches.
        """
        runner, loop = self._runner, self._runner.train_loop
        if loop.val_due or (loop.unit == "iter" and runner.iter % runner.settings["accumulate"]):
            return False
        present = [member for member in runner.members if not member.vacant]
        if not self._within:
            return runner.batches_done == 0
        if runner.batches_done == exact_length(runner.loader("train")):
            return False  # its end is counted first
        interval = loop.val_interval
        if present and interval > min(member.loop.length for member in present):
            return runner.batches_done == 0
        return not present or any(member.iter % interval == 0 for member in present)

    def at_an_end(self) -> bool:
        """Return whether members may have reached their end and everything after their last iteration is done."""
        runner, loop = self._runner, self._runner.train_loop
        count = runner.epoch if loop.unit == "epoch" else runner.iter
        if count < self._first_end or loop.val_due:
            return False
        # A loop by iterations counts the epoch of the data after the validation, if it has ended.
        return loop.unit == "epoch" or runner.batches_done != exact_length(runner.loader("train"))

    def _validates_after(self, count: int) -> bool:
        """Return whether a validation of any member follows at this count of the stack."""
        runner = self._runner
        by_epoch = runner.train_loop.unit == "epoch"
        return any(
            member.loop.validates_after(count + (member.ahead.epochs if by_epoch else member.ahead.iters))
            for member in runner.members
            if not member.vacant
        )
