"""Training of a stack from several configs: a `trainyard.sweep.sweepable.StackTrainer`.

A sweep groups jobs whose configs differ in no more than `ALLOWED`, lets `probe` find the best width of a stack,
and gives each stack to `train_stack`.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig

from trainyard.config.build import build
from trainyard.config.current_job import current_job
from trainyard.config.schema import resolve
from trainyard.fused.probe import Fit
from trainyard.track import NoTracker, Tracker, facts
from trainyard.track.sweep_position import SweepPosition

if TYPE_CHECKING:
    from trainyard.runner import Member

log = logging.getLogger(__name__)

ALLOWED = ("seed", "optim", "schedule", "clip_grad_norm", "clip_grad_value", "hook.ema.decay", "hook.ema.momentum")
"""Places in the configs of a stack below which numbers may differ."""

NOT_COMPARED = ("work_dir", "name", "resume")
"""Keys that say where a job runs, not what it is."""

PRELOAD = ("torch.fx.experimental.symbolic_shapes",)
"""Module that takes half a second to import, at the first loss under vmap."""

Values = dict[str, Any]
Start = tuple[Path, dict[str, Any]]


def widest(device: str) -> int:
    """Return the widest stack to try. On a CPU a stack of more than 64 leaves the caches, and no model got faster."""
    return 64 if device == "cpu" else 1024


def probe(configs: Sequence[DictConfig], of: int) -> Fit:
    """Find the best width of a stack of these jobs: see `trainyard.fused.probe.probe`.

    Args:
        configs: as Hydra composed them, each with its `hydra` node.
        of: how many jobs there are of this kind.
    """
    from trainyard.fused.probe import probe

    members = []
    for config in configs:
        with current_job(config):
            members.append(resolve(config))
    return probe(members, of)


@dataclass(frozen=True)
class MemberResult:
    """Result of one member.

    Attributes:
        state: how it ended.
        value: its best objective; None where it has none.
        error: why it failed, on one line.
    """

    state: Literal["done", "failed", "interrupted"]
    value: float | None = None
    error: str | None = None


def train_stack(configs: Sequence[DictConfig], positions: Sequence[SweepPosition]) -> list[MemberResult]:
    """Train jobs of a sweep as one program.

    Resumed members at different places in the training are trained one place after the other. Where a CUDA
    device runs out of memory, the stack continues in two halves from its last checkpoints.

    Args:
        configs: as Hydra composed them, each with its `hydra` node.
        positions: the members' positions in the sweep.

    Raises:
        Unfusable: they cannot train as one program. Nothing was written.
        TrainyardError: a config cannot work.
    """
    from trainyard.fused.runner import FusedRunner  # noqa: F401 - imports torch while git is at work
    from trainyard.run import record

    collected = facts.begin(Path.cwd())
    tracker: Tracker = build(configs[0].get("tracker"), "tracker") or NoTracker()
    tracker.leave_shipping()
    tracker.start()
    members = []
    found = collected()
    for config, position in zip(configs, positions, strict=True):
        with current_job(config):
            values = resolve(config)
            members.append((values, record.describe(values, found, position)))
    try:
        with current_job(configs[0]):
            return _train(members, tracker)
    finally:
        tracker.finish()


def _train(members: Sequence[tuple[Values, Any]], tracker: Tracker) -> list[MemberResult]:
    """Train members that may be at different iterations: those at one together, one iteration after the other."""
    results: dict[int, MemberResult] = {}
    for stack in _at_one_place([values for values, _ in members]):
        if any(result.state == "interrupted" for result in results.values()):
            results |= dict.fromkeys(stack, MemberResult("interrupted"))
        else:
            results |= dict(zip(stack, _train_together([members[index] for index in stack], tracker), strict=True))
    return [results[index] for index in range(len(members))]


def _train_together(members: Sequence[tuple[Values, Any]], tracker: Tracker) -> list[MemberResult]:
    import torch

    from trainyard.fused.runner import FusedRunner
    from trainyard.run.train import conduct
    from trainyard.runner import Runner

    configs, infos = [values for values, _ in members], [info for _, info in members]
    try:
        runner: Runner
        if len(members) == 1:
            runner = Runner.from_cfg(configs[0], tracker=tracker, info=infos[0])
        else:
            runner = FusedRunner(configs, infos=infos, tracker=tracker)
            log.info("%d jobs as one program.", len(members))
        runner.prepare(configs[0]["mode"])
        conduct(runner, configs)
        return [_result(member, runner.interrupted) for member in runner.all_members]
    except torch.OutOfMemoryError:
        if len(members) == 1:
            raise
        half = len(members) // 2
        log.warning("%d members do not fit into memory: going on with %d.", len(members), half)
    runner = None  # type: ignore[assignment] # frees what it holds on the device first
    gc.collect()  # members and stack refer to each other
    torch.cuda.empty_cache()
    again = [(values | {"resume": True}, info) for values, info in members]
    first = _train(again[:half], tracker)
    if any(result.state == "interrupted" for result in first):
        return first + [MemberResult("interrupted")] * (len(members) - half)
    return first + _train(again[half:], tracker)


def _result(member: Member, interrupted: bool) -> MemberResult:
    from trainyard.run.train import objective

    if member.failed:
        return MemberResult("failed", error=f"The training failed: {member.stop_reason}.")
    return MemberResult("interrupted" if interrupted else "done", objective(member))


def _at_one_place(configs: Sequence[Values]) -> list[list[int]]:
    """Group the members by the place in the training from which they continue.

    Members killed while their checkpoints were being written return to the newest one that all of them have: the
    stack is then restored bit for bit. Members without a common checkpoint continue from their own.
    """
    from trainyard.runner import checkpoint

    folders = [Path(values["work_dir"]) / "checkpoints" for values in configs]
    found = [
        checkpoint.newest(folder) if values["resume"] is True else None
        for values, folder in zip(configs, folders, strict=True)
    ]
    going = [index for index, start in enumerate(found) if start and start[1]["member"]["stop_reason"] is None]
    if len({_place(found[index]) for index in going}) > 1:
        for index, common in _common([folders[index] for index in going], going).items():
            found[index] = common
            configs[index]["resume"] = str(common[0])
    places: dict[tuple[Any, ...], list[int]] = {}
    for index, start in enumerate(found):
        places.setdefault(_place(start), []).append(index)
    return list(places.values())


def _common(folders: Sequence[Path], members: Sequence[int]) -> dict[int, Start]:
    """Return the newest complete checkpoint that all of these members have; none if there is none."""
    from trainyard.runner import checkpoint

    names = [checkpoint.read_last(folder) for folder in folders]
    for name in reversed(names[0]):
        if all(name in others for others in names[1:]):
            starts = [checkpoint.newest(folder, upto=name) for folder in folders]
            whole = [start for start in starts if start is not None and start[0].name == name]
            if len(whole) == len(folders):
                return dict(zip(members, whole, strict=True))
    return {}


def _place(start: Start | None) -> tuple[Any, ...]:
    if start is None:
        return ()
    state = start[1]
    return state["epoch"], state["iter"], state["loop"]["val_due"], state["member"]["stop_reason"] is not None
