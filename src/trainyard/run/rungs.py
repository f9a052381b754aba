"""Reports of a job of a sweep: at each rung, it saves a checkpoint and reports to its sweep; at the last one, it
pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint
from trainyard.run.measured import parameters
from trainyard.runner import Member, Runner, TrainLoop
from trainyard.runner.contract import length_of
from trainyard.runner.hook import Hook
from trainyard.runner.parts import Parts
from trainyard.track.sweep_position import PARAMETERS, RUNG, Rungs, SweepPosition

Wake = Callable[[int], None]


class _OtherPartError(ConfigError):
    """A value of another part of the config; its key is complete, and is not prefixed with the name of this hook."""

    def under(self, prefix: str) -> ConfigError:
        return super().under("")


class RungReports(Hook):
    """Notifies the sweep that a member has reached a rung, after its checkpoint and its journal have been written.

    With several ranks, all of them pause, and the main rank, which has written both, reports.

    Args:
        positions: the positions of the members, in order. Members that join bring their own.
    """

    priority = "LOW"  # before Checkpoint, which then saves
    stackable = True
    own_places = True

    def __init__(self, positions: Sequence[SweepPosition]) -> None:
        self._positions = positions
        self._of: dict[int, SweepPosition] = {}
        self._is_main = True

    def sanity_check(self, runner: Runner) -> None:
        for rungs in (each.rungs for each in self._positions if each.rungs is not None):
            check_rungs(rungs, runner)

    def before_train(self, runner: Runner) -> None:
        self._is_main = runner.strategy.is_main
        self._of = {id(member): each for member, each in zip(runner.all_members, self._positions, strict=True)}
        if not runner.train_loop.val_due:
            self._report_again(runner, runner.members)

    def after_join(self, runner: Runner, joined: Sequence[int]) -> None:
        members: Sequence[Any] = [runner.members[k] for k in joined]
        known = {id(member) for member in runner.all_members}
        self._of = {key: each for key, each in self._of.items() if key in known}
        self._of |= {id(member): member.position for member in members if member.position is not None}
        self._report_again(runner, members)

    def refill(self, runner: Runner, members: Mapping[int, Hook | None]) -> None:
        """Do nothing: `after_join` receives the positions."""

    def copy_lane(self, source: int, target: int) -> None:
        """Do nothing: a position is that of the member."""

    def _report_again(self, runner: Runner, members: Sequence[Member]) -> None:
        """Report for members at a rung, because they may have ended between the checkpoint and its report."""
        for member in members:
            rungs, at = self._rungs(member), self._place(runner, member)
            if rungs is not None and at in rungs.at:
                self._pause_if_due(runner, member, rungs, at)
                self._tell(member, at)

    def after_val(self, runner: Runner) -> None:
        if not runner.training:
            return
        for member in runner.members:
            rungs, at = self._rungs(member), self._place(runner, member)
            if rungs is None or at not in rungs.at or member.failed or member.vacant or not member.due:
                continue
            asked = {PARAMETERS: parameters(member)} if PARAMETERS in self._of[id(member)].metrics else {}
            member.journal.tags({RUNG: at, **asked})
            checkpoint = _required_checkpoint_hook(runner)
            self._pause_if_due(runner, member, rungs, at)
            if member.paused and self._is_main:
                checkpoint.save_next(partial(checkpoint.keep_one, member.checkpoints))
            checkpoint.save_next(partial(self._tell, member, at))

    def _rungs(self, member: Member) -> Rungs | None:
        position = self._of.get(id(member))
        return None if position is None else position.rungs

    def _place(self, runner: Runner, member: Member) -> int:
        """Return the epoch, or iteration, that a member has reached; -1 within an epoch."""
        rungs = self._rungs(member)
        if rungs is None or rungs.by == "iter":
            return member.iter
        return member.epoch if member.batches_done == 0 else -1

    def _pause_if_due(self, runner: Runner, member: Member, rungs: Rungs, at: int) -> None:
        length = length_of(member.loop, runner)
        over = member.loop.unit == rungs.by and length is not None and at >= length
        member.paused = at == rungs.until and member.stop_reason is None and not over

    def _tell(self, member: Member, at: int) -> None:
        wake = self._of[id(member)].wake
        if wake is not None and self._is_main:
            wake(at)


def check_rungs(rungs: Rungs, runner: Parts) -> None:
    """Check that a job can report at its rungs, and pause there.

    Raises:
        ConfigError: no hook saves checkpoints, or there is no validation at a rung.
    """
    _required_checkpoint_hook(runner)
    loop: Any = runner.train_loop
    if not isinstance(loop, TrainLoop) or loop.unit != rungs.by:  # when other loops validate is unknown
        return
    unseen = next((at for at in rungs.at if at < loop.length and not loop.validates_after(at)), None)
    if unseen is None:
        return
    if unseen < loop.val_begin:
        raise _OtherPartError("loop.val_begin", loop.val_begin, f"at most {unseen}, a rung of the sweep")
    unit = "epoch" if rungs.by == "epoch" else "iteration"
    accepted = f"an interval that validates after {unit} {unseen}, a rung of the sweep"
    raise _OtherPartError("loop.val_interval", loop.val_interval, accepted)


def _required_checkpoint_hook(runner: Parts) -> Checkpoint:
    if (found := checkpoint_hook(runner)) is not None:
        return found
    raise _OtherPartError(
        "hook.checkpoint", None, "a hook that saves checkpoints, because this job saves one at each rung of its sweep"
    )


def checkpoint_hook(runner: Parts) -> Checkpoint | None:
    """Return the hook that saves checkpoints; None if there is none."""
    hooks: Iterable[object] = runner.dispatch.hooks.values()
    return next((hook for hook in hooks if isinstance(hook, Checkpoint)), None)


def reporting(positions: Sequence[SweepPosition], *, joinable: bool = False) -> Mapping[str, Any]:
    """Return the hooks with which jobs at these positions report: none if no reports are requested and no member can
    join."""
    asked = joinable or any(each.rungs is not None for each in positions)
    return {"rungs": RungReports(positions)} if asked else {}
