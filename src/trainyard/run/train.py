"""Training of one run, from its config to its objective: record, train, test, summarize, ship."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trainyard import temporary
from trainyard.config.build import build
from trainyard.errors import ConfigError, JobPaused, TrainyardError
from trainyard.files import writing
from trainyard.garbage import collect_as_usual
from trainyard.run import ranks
from trainyard.run.interrupts import interruptible, nothing_left_behind
from trainyard.run.rank_job import RankJob, lead, whole
from trainyard.run.ranks import InterruptedRunError, go_on, shown
from trainyard.track import NoTracker, Shipment, Tracker, as_tracker, facts
from trainyard.track.sweep_position import Returned, SweepPosition

if TYPE_CHECKING:
    from trainyard.distributed.world import World
    from trainyard.run.quick import EndEarly
    from trainyard.runner import Member, Runner

log = logging.getLogger(__name__)

_LONGEST_NAME = 200  # bytes; most file systems allow 255, with the suffix of the file


class RunFailedError(TrainyardError):
    """The training failed: it ended early, without an interruption."""

    status = 1


def train(cfg: DictConfig, position: SweepPosition | None = None) -> Returned:
    """Train (or evaluate) the run that a composed config describes, in a Hydra job.

    Args:
        cfg: the config that Hydra passes to a task function.
        position: the job's position in its sweep, which has checked its config; None for a single run.

    Returns:
        The best objective (None if the run has none), or the numbers that its sweep requests (`SweepPosition.metrics`).

    Raises:
        TrainyardError: the run failed; the error has the exit status of the command.
    """
    temporary.for_multiprocessing()
    directory = Path(HydraConfig.get().runtime.output_dir)
    runner: Runner | None = None
    with nothing_left_behind(directory):
        check_file_names(HydraConfig.get())
        tracker = as_tracker(None if cfg.get("quick") else build(cfg.get("tracker"), "tracker"))
        if position is not None:
            tracker.leave_shipping()
        tracker.start()  # its process imports MLflow while this one imports torch
        collected = facts.begin(Path.cwd())
        from trainyard.config.resolving import resolve
        from trainyard.config.schema import check

        # The jobs of a sweep were checked before the first of them began.
        values = check(cfg) if position is None else resolve(cfg)
        if not isinstance(values.get("work_dir"), str) or not values["work_dir"].strip():
            accepted = "the directory of the run: ${hydra:runtime.output_dir}, or another path"
            raise ConfigError("work_dir", values.get("work_dir"), accepted)
        over = ranks.spread(values)
        if over.devices == 1:
            if over.world is not None and over.strategy is not None and over.world.world_size > 1:
                lead(_rank_job(cfg, position), over.world, over.strategy.timeout)
            if values["quick"]:
                return _tried(values, collected, position, over.world)
            runner = _prepared(values, tracker, collected, position, over.world)
    try:
        if runner is None:
            with nothing_left_behind(directory):
                return ranks.train(_rank_job(cfg, position), Path(values["work_dir"]), over, tracker)
        return _trained(runner, values, position)
    finally:
        _report(_ship(tracker))


def check_file_names(hydra: HydraConf) -> None:
    """Check the names of the files that Hydra writes into the directory of a run.

    Raises:
        ConfigError: a name would lead out of the directory, or is too long.
    """
    name, folder = hydra.job.name, hydra.output_subdir
    if "/" in name or len(os.fsencode(name)) > _LONGEST_NAME:
        accepted = f"the name of the log file: without /, and of at most {_LONGEST_NAME} bytes"
        raise ConfigError("hydra.job.name", name, accepted)
    if folder is not None and (Path(folder).is_absolute() or ".." in Path(folder).parts):
        raise ConfigError(
            "hydra.output_subdir", folder, "a folder in the directory of the run, such as .hydra, or null"
        )


def _tried(
    values: Mapping[str, Any],
    collected: Callable[[], dict[str, str]],
    position: SweepPosition | None,
    world: World | None,
) -> Returned:
    """Perform the quick check of a run: see `trainyard.run.quick`."""
    from trainyard.run.measured import returned
    from trainyard.run.quick import EndEarly, quickly
    from trainyard.runner.training_check import writes_checkpoints

    runner: Runner
    for resumes in (True, False):
        own = quickly(values) | ({} if resumes else {"resume": True})
        runner = _prepared(own, NoTracker(), collected, position, world, EndEarly(resumes=resumes))
        caught = conduct(runner, [own])
        if not resumes or runner.strategy.agree(bool(caught)):
            _raise_if_ended_early(runner, caught, position, own["mode"])
    runner.strategy.end()
    tried = "two batches of each split" if runner.has_split("train") else "two iterations"  # of a simulation
    rest = ", a checkpoint, and resuming from this checkpoint"
    if not writes_checkpoints(runner):
        rest = ". No hook saves checkpoints, so resuming was not checked"
    log.info("Quick check passed: %s%s.", tried, rest)
    return returned(runner.members[0], () if position is None else position.metrics)


def _rank_job(cfg: DictConfig, position: SweepPosition | None) -> RankJob:
    return RankJob(whole(cfg), train_rank, position)


def train_rank(cfg: DictConfig, own: World, position: SweepPosition | None) -> Returned | JobPaused:
    """Train as one of several ranks, like `train`; the first rank writes the journal, and another process uploads it.

    A job that pauses has not failed: it returns how it paused, and does not raise it.

    Args:
        cfg: the checked config.
        own: this rank.
        position: see `train`.
    """
    temporary.for_multiprocessing()
    tracked = own.is_main and not cfg.get("quick")
    tracker = as_tracker(build(cfg.get("tracker"), "tracker") if tracked else None)
    tracker.leave_shipping()
    collected = facts.begin(Path.cwd())
    from trainyard.config.resolving import resolve

    values = resolve(cfg)
    try:
        if values["quick"]:
            return _tried(values, collected, position, own)
        return _trained(_prepared(values, tracker, collected, position, own), values, position)
    except JobPaused as paused:
        return paused


def _prepared(
    values: Mapping[str, Any],
    tracker: Tracker,
    collected: Callable[[], dict[str, str]],
    position: SweepPosition | None,
    own: World | None,
    last: EndEarly | None = None,
) -> Runner:
    from trainyard.run import record
    from trainyard.run.rungs import reporting
    from trainyard.runner import Runner
    from trainyard.runner.batch_checks import check_test_step

    found = collected() | ({} if own is None else {"world_size": str(own.world_size)})
    runner = Runner.from_cfg(values, tracker=tracker, info=record.describe(values, found, position))
    runner.added_hooks |= reporting([] if position is None else [position])
    if last is not None:
        runner.added_hooks["quick"] = last
    runner.prepare(values["mode"])
    for name in runner.sets("test"):  # is tested after the training
        runner.loader(name)
    if values["mode"] == "train":
        check_test_step(runner)
    return runner


def _trained(runner: Runner, values: Mapping[str, Any], position: SweepPosition | None) -> Returned:
    from trainyard.run.measured import returned

    caught = conduct(runner, [values])
    for member in runner.all_members:
        member.journal.close()
    runner.strategy.end()
    _raise_if_ended_early(runner, caught, position, values["mode"])
    return returned(runner.members[0], () if position is None else position.metrics)


@dataclass(frozen=True)
class Record:
    """Data that is recorded for every run in addition to metrics and is the same for all members of a Runner.

    Attributes:
        example: one input of the model; None if the input is not a single tensor.
        inputs: a function that waits for the digests of the data, and returns the data sets.
    """

    example: Any
    inputs: Callable[[], list[dict[str, Any]]]


def conduct(
    runner: Runner,
    configs: Sequence[Mapping[str, Any]],
    begun: Callable[[Record], object] | None = None,
) -> list[int]:
    """Train or evaluate, according to the mode, and write the files of the run.

    Args:
        runner: the prepared Runner.
        configs: the members' configs, resolved.
        begun: called before the training with the records, including those of members that join.

    Returns:
        The signals that ended the run early.
    """
    from trainyard.run import record
    from trainyard.runner.training_check import writes_checkpoints

    collect_as_usual()
    is_main = runner.strategy.is_main
    saves = configs[0]["mode"] == "train" and writes_checkpoints(runner)
    with writing(runner.work_dir or Path.cwd()), interruptible(runner, saves) as caught, runner.session():
        own: Record | None = None
        if is_main:
            inputs = record.begin_inputs(runner, configs[0])
            own = Record(record.example(runner), inputs)
            record.write_files(runner, configs, runner.all_members, own.example)
            _warn_of_missing_hooks(runner, configs[0])
            if begun is not None:
                begun(own)
        _run(runner, configs[0]["mode"])
        if own is not None and runner.all_members:
            record.name_artifacts(runner, runner.all_members, own.inputs())
    return caught


def conclude(runner: Runner, members: Sequence[Member], own: Record) -> None:
    """Test members that have ended before the others, record the files of their runs, and close them.

    Args:
        runner: the Runner that evaluates them.
        members: members that have not failed.
        own: the data to record.
    """
    from trainyard.run import record

    if runner.has_split("test"):
        _test(runner, members)
    for member in members:
        _summarize(member)
    record.name_artifacts(runner, members, own.inputs())


def _test(runner: Runner, members: Sequence[Member]) -> None:
    from trainyard.run import record

    for member in members:
        member.evaluated = record.MODEL if (member.checkpoints / record.BEST.name).exists() else None
    runner.test()
    record.tell_tested(runner)


def _warn_of_missing_hooks(runner: Runner, config: Mapping[str, Any]) -> None:
    """Warn if a training has no log or no checkpoints, unless the config says so explicitly.

    An option file of `hook` that does not include `default` leaves both out.
    """
    from trainyard.hooks import Checkpoint, Logger

    hooks = runner.dispatch.hooks.values()
    if config["mode"] != "train" or not hooks:
        return
    kinds = {"logger": Logger, "checkpoint": Checkpoint}
    missing = [name for name, kind in kinds.items() if not any(isinstance(hook, kind) for hook in hooks)]
    removed = {override.partition("=")[0] for override in HydraConfig.get().overrides.task}
    missing = [name for name in missing if name not in (config.get("hook") or {}) and f"~hook.{name}" not in removed]
    if missing:
        what = {"logger": "logs values (hook.logger)", "checkpoint": "saves checkpoints (hook.checkpoint)"}
        log.warning(
            "No hook %s. To keep the default hooks, start your option file of `hook` with "
            "`defaults: [default, _self_]`, or select default together with your option: hook=[default,…].",
            " and none ".join(what[name] for name in missing),
        )


def _run(runner: Runner, mode: str) -> None:
    if mode == "val":
        runner.val()
    elif mode == "test":
        runner.test()
    else:
        runner.train()
        going = [member for member in runner.all_members if not member.paused]
        without_result = all(member.failed or _ended_before_training(member) for member in going)
        if runner.has_split("test") and not runner.interrupted and not without_result:
            runner.load_best()
            _test(runner, runner.members)
        for member in going if runner.strategy.is_main else ():
            _summarize(member)


def _ended_before_training(member: Member) -> bool:
    """Return whether a hook, such as `LRFinder`, ended the run before the first iteration and the first validation."""
    return member.stop_reason is not None and member.iter == 0 and member.best is None


def _summarize(member: Member) -> None:
    name, best = member.objective.name, member.best
    own = {"member": member}
    if member.stop_reason is not None:
        log.info("Stopped early: %s.", member.stop_reason, extra=own)
    file = member.checkpoints / "best.pt"
    if best is not None:
        tested = member.metrics.get(name.replace("val/", "test/"))
        which = "on the test set" if file.exists() else "the last weights, on the test set,"
        test = "" if tested is None else f"; {which} {tested:.4f}"
        log.info(
            "Best %s %.4f, at epoch %d (iteration %d)%s.", name, best.value, best.epoch, best.iter, test, extra=own
        )
    if file.exists():
        log.info("Checkpoint: %s", shown(file), extra=own)


def _ship(tracker: Tracker) -> Shipment:
    """Wait until the remaining records are uploaded; log a notice if this takes long."""
    notice = threading.Timer(
        3.0, log.info, ["Uploading to MLflow. Press Ctrl-C to continue the upload in the background."]
    )
    notice.daemon = True
    notice.start()
    try:
        return tracker.finish()
    finally:
        notice.cancel()


def _report(shipment: Shipment) -> None:
    """Log where the run can be viewed, and which records have not been uploaded yet."""
    if shipment.arrived:
        log.info("MLflow: %s", shipment.arrived)
    if str(shipment):
        log.warning("%s", shipment)


def _raise_if_ended_early(runner: Runner, caught: list[int], position: SweepPosition | None, mode: str) -> None:
    (member,) = runner.members
    if member.paused:
        raise JobPaused(f"Paused at epoch {runner.epoch} (iteration {runner.iter}).")
    if runner.strategy.world_size > 1:  # the ranks agree on an interruption, whichever of them got the signal
        caught = (caught or [signal.SIGTERM]) if runner.interrupted else []
    if caught:
        if mode != "train":
            raise InterruptedRunError("The evaluation was interrupted.", caught[0])
        further = f"; {go_on(member.directory)}" if position is None else "."  # the command of a sweep resumes its jobs
        raise InterruptedRunError(f"Interrupted at iteration {runner.iter}{further}", caught[0])
    if member.failed:
        raise RunFailedError(f"The training failed: {member.stop_reason}.")
