"""Clock of a stack: its own count of epochs and iterations, and how far each member is ahead of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainyard.data.lengths import exact_length
from trainyard.errors import PlacesDiffer
from trainyard.fused import places
from trainyard.fused.loader import StackedLoader

if TYPE_CHECKING:
    from trainyard.fused.runner import FusedRunner


class LaneClock:
    """Keeps loop, schedule and data in step with lanes that stand at different places of the training.

    The loop counts for the entire stack: `runner.iter` and `runner.epoch`. Each member is a constant number of
    iterations and epochs ahead of that (or, where it is negative, behind), as long as it keeps its lane.

    Args:
        runner: the stack's.
    """

    def __init__(self, runner: FusedRunner) -> None:
        self._runner = runner
        self._first_end = math.inf

    def begin(self, resumed: Sequence[bool], *, joinable: bool) -> None:
        """Note the place of each lane, as distances from that of the first member that goes on from a checkpoint.

        Args:
            resumed: for each member, whether it goes on from a checkpoint.
            joinable: other members may join.

        Raises:
            PlacesDiffer: a part of the training needs all members to stand at one place.
            Unfusable: the members' loops differ in more than their lengths.
        """
        runner = self._runner
        going = [goes_on for member, goes_on in zip(runner.members, resumed, strict=True) if not member.vacant]
        if any(going) and not all(going) and runner.batches_done:
            raise PlacesDiffer("the members' checkpoints are at different positions within an epoch")
        for member, goes_on in zip(runner.members, resumed, strict=True):
            if not goes_on:
                member.begin()
        places.check_loops([member.loop for member in runner.members], runner.settings["accumulate"])
        if joinable or len({member.ahead for member in runner.members}) > 1:
            places.check_lanes(runner)
        self.follow()

    def follow(self) -> None:
        """Let loop, schedule and data follow what the lanes hold now."""
        runner = self._runner
        loop, members = runner.train_loop, runner.members
        ends = [end for member in members if not member.vacant and (end := member.ends_at) is not None]
        self._first_end = min(ends, default=math.inf)
        if ends:
            loop.ends, loop.length = set(ends), max(ends)
        spread = any(member.ahead != (0, 0) for member in members)
        runner.lanes_differ = spread or len(set(ends)) > 1
        vars(loop).pop("validates_after", None)
        if spread:
            loop.validates_after = self._validates_after
        if runner.schedule is not None:
            runner.schedule.place([member.ahead[self.schedule_unit] for member in members])
        loader: Any = runner.loader("train")
        if isinstance(getattr(loader, "whole", loader), StackedLoader):
            repeats = getattr(loader, "repeat", False)  # the batches of one epoch, for all members
            ahead = [0 if repeats else member.ahead[1] for member in members]
            loader.place(ahead, [member.data_seed for member in members])

    @property
    def schedule_unit(self) -> int:
        """Which of `StackMember.ahead` the rows of the schedule count."""
        return 0 if (self._runner.schedule.by or self._runner.train_loop.unit) == "iter" else 1

    def at_an_end(self) -> bool:
        """Return whether members may have reached their end, and all that follows their last iteration is done."""
        runner, loop = self._runner, self._runner.train_loop
        count = runner.epoch if loop.unit == "epoch" else runner.iter
        if count < self._first_end or loop.val_due:
            return False
        # A loop by iterations counts the epoch of the data after the validation, if it has ended.
        return loop.unit == "epoch" or runner.batches_done != exact_length(runner.loader("train"))

    def _validates_after(self, count: int) -> bool:
        """Return whether a validation of any member follows when the stack's own count is this."""
        runner = self._runner
        unit = 1 if runner.train_loop.unit == "epoch" else 0
        return any(
            member.loop.validates_after(count + member.ahead[unit]) for member in runner.members if not member.vacant
        )
