"""Training of a stack from several configs: a `trainyard.sweep.sweepable.StackTrainer`.

A sweep groups jobs whose configs differ only in `ALLOWED`, finds the best width of a stack with `probe`, and passes
each stack to `train_stack`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from trainyard import temporary
from trainyard.config.build import build
from trainyard.config.current_job import current_job
from trainyard.config.resolving import resolve
from trainyard.errors import PlacesDiffer, StackDivided, counted
from trainyard.fused.probe import Fit
from trainyard.track import Tracker, as_tracker, facts
from trainyard.track.sweep_position import SweepPosition

if TYPE_CHECKING:
    from trainyard.fused.job_lanes import JobLanes, JobSource
    from trainyard.fused.results import MemberResult

log = logging.getLogger(__name__)

ALLOWED = (
    "seed",
    "model.**.dropout",
    "model.**.label_smoothing",
    "optim",
    "schedule",
    "clip_grad_norm",
    "clip_grad_value",
    "hook.ema.decay",
    "hook.ema.momentum",
    "loop.max_epochs",
    "loop.max_iters",
)
"""Keys in the configs of a stack below which numbers may differ."""

FIXED_WITH = {"loop.max_epochs": "loop.workflow", "loop.max_iters": "loop.workflow"}
"""Keys whose numbers may differ only in configs without a value at another key, which applies to all members."""

NOT_COMPARED = ("work_dir", "name", "resume")
"""Keys for the place of a job, which do not define what it computes."""

LANES = True
"""Whether jobs join and leave a stack while it trains."""

PRELOAD = ()
"""No further module: what a stack imports, single runs import as well."""

Values = dict[str, Any]


def widest(device: str) -> int:
    """Return the widest stack to try. On a CPU, a stack of more than 64 exceeds the caches, and no model was faster."""
    return 64 if device == "cpu" else 1024


def probe(configs: Sequence[DictConfig], of: int) -> Fit:
    """Find the best width of a stack of these jobs: see `trainyard.fused.probe.probe`.

    Args:
        configs: the composed configs, each with its `hydra` node.
        of: the number of jobs of this kind.
    """
    from trainyard.fused.probe import probe

    members = []
    for config in configs:
        with current_job(config):
            members.append(resolve(config))
    return probe(members, of)


def train_stack(
    configs: Sequence[DictConfig],
    positions: Sequence[SweepPosition],
    source: JobSource | None = None,
    lanes: Sequence[int] = (),
    width: int = 0,
) -> list[MemberResult | None]:
    """Train jobs of a sweep as one program.

    The sweep decides and records how jobs are trained. Jobs that cannot be trained as one program are therefore
    reported, not trained in another way.

    Args:
        configs: the composed configs, each with its `hydra` node.
        positions: the members' positions in the sweep.
        source: the source of further jobs, for lanes that become free.
        lanes: the lane of each member; empty for all lanes, in order.
        width: the number of lanes, the free ones included; 0 for as many as there are jobs.

    Returns:
        The results of the members, and of those that have joined, in the order of their numbers; None for those that
        were reported to the source.

    Raises:
        Unfusable: they cannot train as one program.
        StackDivided: the members must continue in several stacks from their checkpoints, because these are at different
            positions and a part of the training is shared by all members, or because a CUDA device ran out of memory.
        TrainyardError: a config is invalid.
    """
    from trainyard.fused.runner import FusedRunner  # noqa: F401 - imports torch while git is at work
    from trainyard.run import record

    temporary.for_multiprocessing()
    collected = facts.begin(Path.cwd())
    quick = bool(configs[0].get("quick"))
    tracker: Tracker = as_tracker(None if quick else build(configs[0].get("tracker"), "tracker"))
    tracker.leave_shipping()
    tracker.start()
    members = []
    found = collected()
    for config, position in zip(configs, positions, strict=True):
        with current_job(config):
            values = resolve(config)
            members.append((values, record.describe(values, found, position)))
    feed = None
    if source is not None and not quick:
        from trainyard.fused.job_lanes import JobLanes

        feed = JobLanes(source, found, positions[0].metrics)
    rows = dict(zip(lanes or range(len(configs)), range(len(configs)), strict=True))
    places = [rows.get(lane) for lane in range(width or len(configs))]
    try:
        with current_job(configs[0]):
            return _train(members, tracker, positions, feed, places, source)
    finally:
        tracker.finish()


def _train(
    members: Sequence[tuple[Values, Any]],
    tracker: Tracker,
    positions: Sequence[SweepPosition],
    feed: JobLanes | None,
    rows: Sequence[int | None],
    source: JobSource | None,
) -> list[MemberResult | None]:
    """Train members.

    Args:
        members: the config and the record of each.
        tracker: the tracker.
        positions: their positions in the sweep.
        feed: the source of further members.
        rows: for each lane, the index of its member; None for a free lane.
        source: the source of further jobs, which is notified if the stack cannot accept any. None: there are no further
            jobs.
    """
    import torch

    from trainyard.fused.places import places
    from trainyard.fused.results import result_of
    from trainyard.fused.runner import FusedRunner
    from trainyard.run.quick import EndEarly, quickly
    from trainyard.run.rungs import reporting
    from trainyard.run.train import conduct
    from trainyard.runner import Runner

    configs, infos = [values for values, _ in members], [info for _, info in members]
    quick = configs[0]["quick"]
    if quick:
        configs = [quickly(values) for values in configs]
    together = len(rows) > 1
    groups = [[*range(len(configs))]] if feed is not None else places(configs)

    def prepared(own: Sequence[Values], feed: JobLanes | None) -> Runner:
        runner: Runner
        if together or feed is not None:
            given = [None if row is None else own[row] for row in rows]
            taken = [row for row in rows if row is not None]
            stack = FusedRunner(given, infos=[infos[row] for row in taken], tracker=tracker, feed=feed)
            stack.number(taken)
            if feed is not None:
                feed.stack = stack
            runner = stack
        else:
            runner = Runner.from_cfg(own[0], tracker=tracker, info=infos[0])
        runner.added_hooks |= reporting(positions, joinable=feed is not None)
        if quick:
            runner.added_hooks["quick"] = EndEarly(resumes=own is configs)
        runner.prepare(own[0]["mode"])
        return runner

    try:
        if feed is not None:
            try:
                runner = prepared(configs, feed)
            except PlacesDiffer as error:
                if None in rows:
                    raise
                log.info("No jobs can join this stack: %s.", error)
                feed, groups = None, places(configs)
        if feed is None:
            if source is not None:
                source.unfed()
            runner = prepared(configs, None)
        log.info("Training %s as one program.", counted(len(members), "job"))
        caught = conduct(runner, configs, None if feed is None else feed.begin)
        if quick and not caught:
            again = [{**values, "resume": True} for values in configs]
            runner = prepared(again, None)
            conduct(runner, again)
    except PlacesDiffer as error:
        groups = places(configs) if feed is not None else groups
        if len(groups) == 1:
            raise
        raise StackDivided(
            f"the members' checkpoints are at different positions in the training ({error})", groups
        ) from error
    except torch.OutOfMemoryError as error:
        if len(members) == 1:
            raise
        half, count = len(members) // 2, len(members)
        reason = f"{count} members do not fit into memory"
        raise StackDivided(reason, [list(range(half)), list(range(half, count))]) from error
    metrics = positions[0].metrics if positions else ()
    if not isinstance(runner, FusedRunner):
        return [result_of(runner.members[0], metrics, interrupted=runner.interrupted)]
    results: list[MemberResult | None] = [None] * runner.next_number
    for member in runner.all_members:
        results[member.number] = result_of(member, metrics, interrupted=runner.interrupted)
    return results
