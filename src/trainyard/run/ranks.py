"""Ranks of a run on several devices: they are started here, or joined if a launcher starts them."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict, read_write

from trainyard.config.build import build
from trainyard.errors import ConfigError, JobPaused, TrainyardError
from trainyard.files import REPEAT
from trainyard.nodes import Nodes
from trainyard.quoting import shell_override
from trainyard.run.rank_job import RankJob, run_started, where
from trainyard.track import Journal, Status, Tracker
from trainyard.track.run_info import FILE
from trainyard.track.sweep_position import Returned
from trainyard.track.uri import launch_folder

if TYPE_CHECKING:
    from trainyard.distributed.distributed import Distributed
    from trainyard.distributed.launch import Outcome
    from trainyard.distributed.world import World

log = logging.getLogger(__name__)

_GPUS = "CUDA_VISIBLE_DEVICES"
REPEAT_REPRODUCTION = f"{REPEAT}`trainyard reproduce` in another directory (--to)"
"""The next step after a reproduction that did not end: it cannot be resumed."""


class InterruptedRunError(TrainyardError):
    """The training was interrupted, saved a checkpoint, and can be resumed."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


class RankFailedError(TrainyardError):
    """A rank of a run has failed or was killed, which ended the run."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Spread:
    """Spread of a run over devices.

    Args:
        devices: the number of ranks that this process must start; 1 if it trains itself.
        world: the rank of this process, if it was started as one.
        strategy: the strategy of the run, if it is for several devices.
    """

    devices: int = 1
    world: World | None = None
    strategy: Distributed | None = None


def spread(values: Mapping[str, Any], room: int = 0) -> Spread:
    """Return the spread of a run, from its config and the environment.

    Args:
        values: the resolved config.
        room: the number of devices that it may use on several machines, if this is more than on this machine.

    Raises:
        ConfigError: there are too few devices; a launcher has not started this process, or has started more
            processes than one device can use.
    """
    from trainyard.distributed import world

    node = values.get("strategy") or {}
    if "launcher" not in node:
        found = world.find()
        if found is not None and found.world_size > 1:
            hint = f"This run was started in {found.world_size} processes."
            raise ConfigError("strategy", _name(node), "a strategy for several devices: ddp or fsdp", hint=hint)
        return Spread()
    strategy: Distributed = build(node, "strategy")
    try:
        found = world.find(strategy.launcher)
        if found is None:
            nodes = Nodes.find()
            room = max(room, 0 if nodes is None else nodes.total)
            return Spread(_devices(strategy, str(values.get("device", "auto")), room), None, strategy)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
        if strategy.devices not in ("auto", found.world_size, local):
            accepted = f"auto, or {found.world_size}, the number of started processes"
            if 0 < local < found.world_size:
                own = f"the number of those on this machine ({local})"
                accepted = f"auto, the number of started processes ({found.world_size}), or {own}"
            raise ConfigError("devices", strategy.devices, accepted)
    except ConfigError as error:
        raise error if error.key == "device" else error.under("strategy") from None
    return Spread(1, found, strategy)


def _name(node: Mapping[str, Any]) -> str:
    choice = HydraConfig.get().runtime.choices.get("strategy") if HydraConfig.initialized() else None
    return str(choice or node.get("_target_") or "single")


def _devices(strategy: Distributed, device: str, room: int) -> int:
    import torch

    from trainyard.distributed.launch import cores

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if gpus:
        count, limit, what = gpus, gpus, "the number of GPUs that this process may use"
    elif device in ("auto", "cpu"):  # a device is a process, and one process makes the best use of a few cores
        count, limit, what = 1, cores(), "the number of cores that this process may use"
    else:
        count, limit, what = 1, 1, ""
    if room > limit and what:
        limit, what = room, "the number of slots of all nodes"
    if strategy.devices != "auto":
        count = int(strategy.devices)
    if count > limit and not what:
        known = "auto, cuda or cpu" if torch.cuda.device_count() else "auto or cpu"
        accepted = f"{known}, because strategy.devices={count}"
        if device == "cuda":
            accepted = f"{known}, because torch finds no CUDA device"
        raise ConfigError("device", device, accepted)
    if count > limit:
        raise ConfigError("devices", count, f"auto, or at most {limit}, {what}")
    if strategy.min_devices is not None and strategy.min_devices > count:
        raise ConfigError("min_devices", strategy.min_devices, f"at most {count}, the number of devices, or null")
    return count


# -- the process that starts the ranks ---------------------------------------------------------------------------------


def train(job: RankJob, work_dir: Path, over: Spread, tracker: Tracker) -> Returned:
    """Start the ranks of a run on this machine, and wait for them.

    Args:
        job: the job of each rank.
        work_dir: the run's directory.
        over: the number of ranks.
        tracker: the tracker, which follows the journal of the first rank.

    Returns:
        The result of the first rank.

    Raises:
        TrainyardError: a rank failed, or all were interrupted.
        JobPaused: the job has paused for its sweep.
    """
    from trainyard.distributed.launch import launch

    assert over.strategy is not None
    following = _Following(tracker, work_dir)
    gpus, left, nodes = _gpus(over), over.devices, Nodes.find()
    if nodes is not None and nodes.total != left:
        nodes = None  # it trains on fewer devices than its job has
    try:
        while True:
            try:
                outcome = launch(
                    run_started,
                    job,
                    left,
                    port=over.strategy.port,
                    environ={_GPUS: ",".join(gpus)} if left < over.devices and gpus else {},
                    where=where,
                    on_tick=following.look,
                    nodes=nodes,
                )
            except ConfigError as error:
                raise error.under("strategy") from None
            following.look()
            gpus = [gpu for rank, gpu in enumerate(gpus) if rank not in outcome.killed]
            left -= len(outcome.killed)
            if nodes is not None:  # the job continues elsewhere
                break
            if outcome.signum is not None or not outcome.killed or left < (over.strategy.min_devices or left + 1):
                break
            job = _resumed(job, work_dir)
            origin = _origin(job, work_dir)
            log.warning("%s Continuing with %d of %d devices from %s.", outcome.error, left, over.devices, origin)
    except KeyboardInterrupt:
        following.note("KILLED", "interrupted")
        raise
    return _told(outcome, following, "" if job.position else go_on(work_dir))


def assist() -> None:
    """Start the ranks of this node, which is not the first node of its job, and wait for them.

    Raises:
        TrainyardError: a rank failed, or all were interrupted.
    """
    from trainyard.distributed.launch import assist as start

    nodes = Nodes.find()
    assert nodes is not None
    outcome = start(nodes)
    if outcome.state == "interrupted":
        raise InterruptedRunError(outcome.error, outcome.status - 128)
    if outcome.state != "done":
        raise RankFailedError(outcome.error, outcome.status)


def _told(outcome: Outcome, following: _Following, further: str) -> Returned:
    if outcome.state == "done":
        value: Returned | JobPaused = outcome.value
        if isinstance(value, JobPaused):
            raise value
        return value
    if outcome.state == "interrupted":
        raise InterruptedRunError(outcome.error, outcome.status - 128)
    following.note("FAILED", outcome.error)
    if sys.stdout.isatty():
        print("\x1b[?25h", end="", flush=True)  # a killed progress bar leaves the cursor hidden
    if outcome.trace is not None:
        log.error("%s", outcome.trace.rstrip())
    message = f"{outcome.error.rstrip('.')}; {further}" if outcome.killed and further else outcome.error
    raise RankFailedError(message, outcome.status)


class _Following:
    """Makes the tracker follow a run whose journal another process writes."""

    def __init__(self, tracker: Tracker, work_dir: Path) -> None:
        self._tracker = tracker
        self._work_dir = work_dir
        self._since = time.time()
        self._begun = False

    def look(self) -> None:
        """Follow the run once it has started."""
        if not self._begun:
            with suppress(FileNotFoundError):
                self._begun = (self._work_dir / FILE).stat().st_mtime >= self._since
            if self._begun:
                self._tracker.follow(self._work_dir)

    def note(self, status: Status, message: str) -> None:
        """Record how the run ended, if its ranks could not."""
        if self._begun:
            with suppress(TrainyardError, OSError), Journal(self._work_dir) as journal:
                journal.status(status, message)


def _resumed(job: RankJob, work_dir: Path) -> RankJob:
    """Return the same job, resumed from its latest checkpoint; if it has none, from the one with which it started."""
    config = job.config.copy()
    if _has_checkpoint(work_dir) or not isinstance(config.resume, str):
        with read_write(config), open_dict(config):
            config.resume = True
    return replace(job, config=config)


def _origin(job: RankJob, work_dir: Path) -> str:
    """Return where a job of `_resumed` continues, for the log."""
    if _has_checkpoint(work_dir):
        return "the last checkpoint"
    if isinstance(job.config.resume, str):
        return f"{job.config.resume}, because there is no later checkpoint"
    return "the start, because there is no checkpoint"


def _has_checkpoint(work_dir: Path) -> bool:
    return (work_dir / "checkpoints" / "last.json").exists()


def _gpus(over: Spread) -> list[str]:
    """Return the names of the GPUs that the ranks are on, in order; an empty list on the CPU."""
    import torch

    names = [name.strip() for name in os.environ.get(_GPUS, "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return (names or [str(number) for number in range(count)])[: over.devices] if count else []


def go_on(work_dir: Path) -> str:
    """Return the instruction for resuming the run in this directory, or for repeating a reproduction."""
    if is_reproduction():
        return f"{REPEAT_REPRODUCTION}."
    if not any((work_dir / "checkpoints").glob("*.pt")):
        return "no checkpoint was saved, so the run cannot be resumed."
    return f"to resume, {how_to_resume()}"


def is_reproduction() -> bool:
    """Return whether `trainyard reproduce` started this process, with a temporary config."""
    from trainyard.catalog.again import CONFIGS

    hydra: Any = HydraConfig.get()
    return any(Path(each.path).name.startswith(CONFIGS) for each in hydra.runtime.get("config_sources") or ())


def how_to_resume() -> str:
    """Return the instruction for resuming the run of this process, in the imperative, for a message.

    A job of a sweep of another launcher, or of `hydra.launcher.debug=true`, is resumed together with its sweep.
    """
    key, directory = command_directory()
    return f"use the same command with {shell_override(key, shown(directory))} resume=true"


def command_directory() -> tuple[str, Path]:
    """Return the directory of the command of this process, and the key that sets it."""
    hydra: Any = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        return "hydra.sweep.dir", Path(hydra.sweep.dir)
    return "hydra.run.dir", Path(hydra.runtime.output_dir)


def shown(path: Path) -> str:
    """Return a path as a user would write it in the folder of the command."""
    folder = launch_folder()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
