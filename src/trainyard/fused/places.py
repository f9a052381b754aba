"""Positions in the training at which the members of a stack continue."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.data.lengths import exact_length
from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.lane_orders import LaneOrders
from trainyard.runner import checkpoint
from trainyard.runner.loops import TrainLoop

if TYPE_CHECKING:
    from trainyard.fused.member import StackMember
    from trainyard.fused.runner import FusedRunner

log = logging.getLogger(__name__)

Values = dict[str, Any]
Found = tuple[Path, dict[str, Any]]


def places(configs: Sequence[Values]) -> list[list[int]]:
    """Group members, by index, that can certainly continue as one stack: those at the same position, and those that
    have ended.

    All files of a stack's checkpoint are written before the first is recorded. If a stack was killed in between, its
    members return to the newest checkpoint that all of them have, or to the beginning if none was recorded yet, so that
    the stack is restored bit for bit. Only members that have not trained together before can be at different positions;
    most trainings can continue these together too (see `check_lanes`).

    Args:
        configs: the resolved configs of the members. For members that return to an earlier checkpoint, `resume` is set
            to its path.
    """
    folders = [Path(values["work_dir"]) / "checkpoints" for values in configs]
    found = {
        index: checkpoint.newest(folders[index]) if values["resume"] is True else None
        for index, values in enumerate(configs)
    }
    ended = [index for index, start in found.items() if start is not None and _has_ended(start)]
    going = [index for index in found if index not in ended]
    at = {_place(found[index]) for index in going}
    ahead = [index for index in ended if going and _iter(found[index]) > min(_iter(found[each]) for each in going)]
    if len(at) < 2 and not ahead:
        return [list(found)]
    if (common := _common(folders, going, ahead)) is not None:
        for index, (path, _) in common.items():
            configs[index]["resume"] = str(path)
        return [list(found)]
    if not any((folder / checkpoint.LAST).exists() or len(_names(folder)) > 1 for folder in folders):
        log.warning("The stack starts from the beginning, because it was killed before all members had a checkpoint.")
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return [list(found)]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index in going:
        groups.setdefault(_place(found[index]), []).append(index)
    return [each for each in (ended, *groups.values()) if each]


def _common(folders: Sequence[Path], going: Sequence[int], ahead: Sequence[int]) -> dict[int, Found] | None:
    """Return the newest complete checkpoint that these members have at the same position; None if there is none.

    Args:
        folders: the folders of all members.
        going: members that have not ended.
        ahead: members that ended after the last checkpoint of a member that has not ended. Those that ended after the
            common checkpoint also return to it.
    """
    for name in _names(folders[going[0]]):
        starts = {index: _whole(folders[index] / name) for index in going}
        if None in starts.values() or len({_place(start) for start in starts.values()}) > 1:
            continue
        place = _iter(starts[going[0]])
        back = {index: start for index in ahead if (start := _whole(folders[index] / name)) is not None}
        if all(index in back or _iter(checkpoint.newest(folders[index])) <= place for index in ahead):
            starts |= {index: start for index, start in back.items() if not _has_ended(start)}
            return {index: start for index, start in starts.items() if start is not None}
    return None


def _names(folder: Path) -> list[str]:
    """Return the regular checkpoints of a folder, recorded or not, newest first."""
    files = [*folder.glob("epoch_*.pt"), *folder.glob("iter_*.pt")]
    return [file.name for file in sorted(files, key=lambda file: (-file.stat().st_mtime_ns, file.name))]


def _whole(path: Path) -> Found | None:
    try:
        return path, checkpoint.load(path)
    except (checkpoint.DamagedCheckpointError, FileNotFoundError):
        return None


def _has_ended(start: Found) -> bool:
    return start[1]["member"]["stop_reason"] is not None


def _iter(start: Found | None) -> int:
    return 0 if start is None else int(start[1]["iter"])


def _place(start: Found | None) -> tuple[Any, ...]:
    return () if start is None else (start[1]["epoch"], start[1]["iter"], start[1]["loop"]["val_due"])


def check_loops(loops: Sequence[Any], accumulate: int) -> None:
    """Check that loops differ only in their lengths. Loops that are not a `TrainLoop` must not differ.

    Raises:
        Unfusable: they differ otherwise, or members of different lengths need an action at their end that other members
            must not have.
    """
    own = [loop for loop in loops if isinstance(loop, TrainLoop)]
    others = [loop for loop in loops if not isinstance(loop, TrainLoop)]
    if any(type(loop) is not type(others[0]) or _plain(loop) != _plain(others[0]) for loop in others[1:]):
        raise Unfusable(f"the members' loops differ, and {type(others[0]).__name__} is not a TrainLoop")
    lengths = {loop.length for loop in own}
    if len(lengths) < 2:
        return
    first = own[0]
    for loop in own:
        if type(loop) is not type(first):
            raise Unfusable(f"the members' loops differ in class: {type(first).__name__} and {type(loop).__name__}")
        for name in ("val_begin", "val_interval", "dynamic_intervals"):
            one, other = getattr(first, name), getattr(loop, name)
            if one != other:
                raise Unfusable(f"the members' loops differ in {name}: {one} and {other}")
        if loop.workflow:
            raise Unfusable("the members' loops have a workflow and different lengths")
    if first.unit == "iter" and any(length % accumulate for length in lengths):
        counts = ", ".join(map(str, sorted(lengths)))
        raise Unfusable(f"accumulate={accumulate} does not divide all numbers of iterations of the members: {counts}")


def _plain(loop: Any) -> dict[str, Any]:
    """Return the attributes of a loop that are numbers or text."""
    return {name: value for name, value in vars(loop).items() if isinstance(value, bool | int | float | str)}


def check_lanes(runner: FusedRunner) -> None:
    """Check that all parts of a training keep a separate position for each member.

    Raises:
        PlacesDiffer: a part does not; the message names the part.
    """
    loop = runner.train_loop
    if not isinstance(loop, TrainLoop) or loop.workflow:
        why = "it has a workflow" if isinstance(loop, TrainLoop) else "it is not a TrainLoop"
        raise PlacesDiffer(f"all members share the {type(loop).__name__}, because {why}")
    if exact_length(runner.loader("train")) is None:
        raise PlacesDiffer("the number of batches in an epoch is unknown")
    check_accumulation(runner, [member.ahead.iters for member in runner.members if not member.vacant])
    for name, hook in runner.dispatch.hooks.items():
        if not getattr(hook, "own_places", False):
            raise PlacesDiffer(
                f"hook.{name} ({type(hook).__name__}) counts the same epochs and iterations for all members"
            )


def check_accumulation(runner: FusedRunner, ahead: Sequence[int]) -> None:
    """Check that the groups of batches of members end with those of the stack.

    Args:
        runner: the Runner of the stack.
        ahead: the number of iterations by which each member is ahead of the stack.

    Raises:
        PlacesDiffer: the groups do not end together.
    """
    accumulate = int(runner.settings["accumulate"])
    if runner.train_loop.unit == "iter" and any(iters % accumulate for iters in ahead):
        raise PlacesDiffer(f"accumulate={accumulate} does not divide the number of iterations between the members")


def check_joining(runner: FusedRunner, member: StackMember) -> None:
    """Check that the loop of a joining member differs from the loops of the others only in its length.

    Raises:
        Unfusable: the loops differ otherwise.
    """
    others = [each.loop for each in runner.members if not each.vacant]
    check_loops([*others, member.loop], runner.settings["accumulate"])


def schedule_unit(runner: FusedRunner) -> str:
    """Return what the rows of the schedule count: `epoch` or `iter`."""
    unit: str = runner.schedule.by or runner.train_loop.unit
    return unit


def why_not_within(runner: FusedRunner) -> str | None:
    """Return why members cannot be at different batches of their epochs; None if they can."""
    loop, loader = runner.train_loop, runner.loader("train")
    whole = getattr(loader, "whole", loader)
    if not isinstance(loop, TrainLoop):
        return f"{type(loop).__name__} is not a TrainLoop"
    if loop.unit != "iter":
        return "the loop counts epochs"
    if getattr(loader, "repeat", False):
        return "overfit repeats the batches of one epoch for all members"
    if not isinstance(whole, LaneOrders):
        return "the data is not shuffled by the seed of the run"
    if (length := exact_length(loader)) is None or not whole.are_full(length):
        return "the last batch of an epoch is smaller (data.drop_last=true omits it)"
    if runner.schedule is not None and schedule_unit(runner) == "epoch":
        return "the schedule counts epochs"
    for name, hook in runner.dispatch.hooks.items():
        of_epochs = any(hasattr(hook, stage) for stage in ("before_train_epoch", "after_train_epoch"))
        if of_epochs and not getattr(hook, "own_epochs", False):
            return (
                f"hook.{name} ({type(hook).__name__}) acts at the starts or ends of epochs, which must be the same "
                "for all members"
            )
    return None
