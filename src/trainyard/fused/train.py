"""Training of a stack from several configs: a `trainyard.sweep.sweepable.StackTrainer`.

A sweep groups jobs whose configs differ in no more than `ALLOWED`, lets `probe` find the best width of a stack,
and gives each stack to `train_stack`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig

from trainyard import temporary
from trainyard.config.build import build
from trainyard.config.current_job import current_job
from trainyard.config.resolving import resolve
from trainyard.errors import PlacesDiffer, StackDivided
from trainyard.fused.probe import Fit
from trainyard.track import NoTracker, Tracker, facts
from trainyard.track.sweep_position import Returned, SweepPosition

if TYPE_CHECKING:
    from trainyard.fused.feed import Feed
    from trainyard.runner import Member

log = logging.getLogger(__name__)

ALLOWED = (
    "seed",
    "optim",
    "schedule",
    "clip_grad_norm",
    "clip_grad_value",
    "hook.ema.decay",
    "hook.ema.momentum",
    "loop.max_epochs",
    "loop.max_iters",
)
"""Places in the configs of a stack below which numbers may differ."""

FIXED_WITH = {"loop.max_epochs": "loop.workflow", "loop.max_iters": "loop.workflow"}
"""Places at which numbers may differ only in configs that hold nothing at another place, which counts for all."""

NOT_COMPARED = ("work_dir", "name", "resume")
"""Keys that say where a job runs, not what it is."""

PRELOAD = ("torch.fx.experimental.symbolic_shapes",)
"""Module that takes half a second to import, at the first loss under vmap."""

Values = dict[str, Any]


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
        value: its best objective, None where it has none; or the metrics that its sweep asks for.
        error: why it failed, on one line.
    """

    state: Literal["done", "failed", "interrupted", "paused"]
    value: Returned = None
    error: str | None = None


def train_stack(
    configs: Sequence[DictConfig], positions: Sequence[SweepPosition], feed: Feed | None = None
) -> list[MemberResult]:
    """Train jobs of a sweep as one program.

    How they are trained is the sweep's decision, which it records: what cannot be trained as one is not trained in
    another way here, but reported.

    Args:
        configs: as Hydra composed them, each with its `hydra` node.
        positions: the members' positions in the sweep.
        feed: the source of further members, for lanes that become free.

    Returns:
        The results of the members, and of those that have joined, in order.

    Raises:
        Unfusable: they cannot train as one program.
        StackDivided: they are to go on in several stacks from their checkpoints, since these are at different places of
            the training and a part of it counts for all members, or since a CUDA device ran out of memory.
        TrainyardError: a config cannot work.
    """
    from trainyard.fused.runner import FusedRunner  # noqa: F401 - imports torch while git is at work
    from trainyard.run import record

    temporary.for_multiprocessing()
    collected = facts.begin(Path.cwd())
    quick = bool(configs[0].get("quick"))
    tracker: Tracker = (None if quick else build(configs[0].get("tracker"), "tracker")) or NoTracker()
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
            return _train(members, tracker, positions, feed)
    finally:
        tracker.finish()


def _train(
    members: Sequence[tuple[Values, Any]],
    tracker: Tracker,
    positions: Sequence[SweepPosition],
    feed: Feed | None,
) -> list[MemberResult]:
    import torch

    from trainyard.fused.places import places
    from trainyard.fused.runner import FusedRunner
    from trainyard.run.quick import EndEarly, quickly
    from trainyard.run.rungs import reporting
    from trainyard.run.train import conduct
    from trainyard.runner import Runner

    configs, infos = [values for values, _ in members], [info for _, info in members]
    quick = configs[0]["quick"]
    if quick:
        configs = [quickly(values) for values in configs]
    groups = places(configs)
    try:
        runner: Runner
        for resumes in (True, False) if quick else (None,):
            own = configs if resumes is not False else [{**values, "resume": True} for values in configs]
            if len(members) == 1 and feed is None:
                runner = Runner.from_cfg(own[0], tracker=tracker, info=infos[0])
            else:
                runner = FusedRunner(own, infos=infos, tracker=tracker, feed=feed)
                log.info("%d jobs as one program.", len(members))
            runner.added_hooks |= reporting(positions)
            if resumes is not None:
                runner.added_hooks["quick"] = EndEarly(resumes=resumes)
            runner.prepare(own[0]["mode"])
            if conduct(runner, own):
                break
    except PlacesDiffer as error:
        if len(groups) == 1:
            raise
        raise StackDivided(f"their checkpoints are at different places of the training ({error})", groups) from error
    except torch.OutOfMemoryError as error:
        if len(members) == 1:
            raise
        half, count = len(members) // 2, len(members)
        reason = f"{count} members do not fit into memory"
        raise StackDivided(reason, [list(range(half)), list(range(half, count))]) from error
    metrics = positions[0].metrics if positions else ()
    return [_result(member, runner.interrupted, metrics) for member in runner.all_members]


def _result(member: Member, interrupted: bool, metrics: Sequence[str]) -> MemberResult:
    from trainyard.run.measured import returned

    if member.paused:
        return MemberResult("paused")
    if member.failed:
        return MemberResult("failed", error=f"The training failed: {member.stop_reason}.")
    return MemberResult("interrupted" if interrupted else "done", returned(member, metrics))
