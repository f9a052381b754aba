"""A run on several devices, as the application sees it: the ranks that it starts, or joins where others start them."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.main import get_args_parser  # type: ignore[attr-defined]
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trainyard.config.build import build
from trainyard.errors import ConfigError, TrainyardError
from trainyard.track import Journal, Status, Tracker, membership
from trainyard.track.membership import Membership
from trainyard.track.run_info import FILE

if TYPE_CHECKING:
    from trainyard.dist.distributed import Distributed
    from trainyard.dist.launch import Outcome
    from trainyard.dist.world import World

log = logging.getLogger(__name__)

_NUMBERS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_CONFIG = "config"  # where the first rank leaves it for the others
_GPUS = "CUDA_VISIBLE_DEVICES"


class RankFailedError(TrainyardError):
    """A rank of a run has failed, or somebody killed it, and so the run has ended."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Spread:
    """Over what a run is spread.

    Args:
        devices: the ranks that this process is to start; 1: it trains by itself.
        world: the rank that it is, where it was started as one.
        strategy: the run's, where that is for several devices.
    """

    devices: int = 1
    world: World | None = None
    strategy: Distributed | None = None


@dataclass(frozen=True)
class _Job:
    """All that a rank needs: the config with its `hydra` node, and the run's place in its sweep."""

    config: DictConfig
    membership: Membership | None = None


def spread(values: Mapping[str, Any]) -> Spread:
    """Over what a run is to be spread, as its config and the environment say.

    Args:
        values: the config, resolved.

    Raises:
        ConfigError: more devices than there are; a launcher that has not started this process, or has started more of
            them than one device has use for.
    """
    from trainyard.dist import world

    node = values.get("strategy") or {}
    if "launcher" not in node:
        found = world.find()
        if found is not None and found.world_size > 1:
            hint = f"{found.world_size} processes of this run were started."
            raise ConfigError("strategy", _name(node), "one for several devices: ddp or fsdp", hint=hint)
        return Spread()
    strategy: Distributed = build(node, "strategy")
    try:
        found = world.find(strategy.launcher)
        if found is None:
            return Spread(_devices(strategy, str(values.get("device", "auto"))), None, strategy)
        if strategy.devices not in ("auto", found.world_size, int(os.environ.get("LOCAL_WORLD_SIZE", "0"))):
            accepted = f"auto, or {found.world_size}: so many processes were started"
            raise ConfigError("devices", strategy.devices, accepted)
    except ConfigError as error:
        raise error if error.key == "device" else error.under("strategy") from None
    return Spread(1, found, strategy)


def _name(node: Mapping[str, Any]) -> str:
    choice = HydraConfig.get().runtime.choices.get("strategy") if HydraConfig.initialized() else None
    return str(choice or node.get("_target_") or "single")


def _devices(strategy: Distributed, device: str) -> int:
    import torch

    from trainyard.dist.launch import cores

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if gpus:
        count, limit, what = gpus, gpus, "the GPUs of this machine"
    elif device in ("auto", "cpu"):  # a device is a process, and one process the best use of a few cores
        count, limit, what = 1, cores(), "the cores that this process may use"
    else:
        count, limit, what = 1, 1, ""
    if strategy.devices != "auto":
        count = int(strategy.devices)
    if count > limit and not what:
        raise ConfigError("device", device, f"auto, cuda or cpu, since strategy.devices={count}")
    if count > limit:
        raise ConfigError("devices", count, f"at most {limit}, {what}")
    if strategy.min_devices is not None and strategy.min_devices > count:
        raise ConfigError("min_devices", strategy.min_devices, f"at most {count}, the devices that there are, or null")
    port = strategy.port
    if port is not None and (type(port) is not int or not 0 < port < 2**16):
        raise ConfigError("port", port, "a whole number from 1 to 65535, or null to have a free one found")
    return count


# -- the process that starts the ranks ---------------------------------------------------------------------------------


def train(cfg: DictConfig, values: Mapping[str, Any], over: Spread, tracker: Tracker) -> float | None:
    """Start the ranks of a run on this machine, and wait for them.

    Args:
        cfg: as Hydra gave it to its task.
        values: the same, resolved.
        over: how many.
        tracker: follows what the first rank journals.

    Returns:
        The best objective.

    Raises:
        TrainyardError: a rank has failed, or all were interrupted.
    """
    from trainyard.dist.launch import launch

    assert over.strategy is not None
    work_dir = Path(values["work_dir"])
    following = _Following(tracker, work_dir)
    job = _Job(_whole(cfg), membership.current)
    gpus, left = _gpus(over), over.devices
    try:
        while True:
            try:
                outcome = launch(
                    _train_started,
                    job,
                    left,
                    port=over.strategy.port,
                    environ={_GPUS: ",".join(gpus)} if left < over.devices and gpus else {},
                    where=where,
                    on_tick=following.look,
                )
            except ConfigError as error:
                raise error.under("strategy") from None
            following.look()
            gpus = [gpu for rank, gpu in enumerate(gpus) if rank not in outcome.killed]
            left -= len(outcome.killed)
            if outcome.signum is not None or not outcome.killed or left < (over.strategy.min_devices or left + 1):
                break
            job = _resumed(job, work_dir)
            origin = "the last checkpoint" if _has_checkpoint(work_dir) else "the beginning: there is no checkpoint"
            log.warning("%s Going on with %d of %d devices from %s.", outcome.error, left, over.devices, origin)
    except KeyboardInterrupt:
        following.note("KILLED", "interrupted")
        raise
    return _told(outcome, following, work_dir)


def _told(outcome: Outcome, following: _Following, work_dir: Path) -> float | None:
    from trainyard.run import InterruptedRunError, go_on

    if outcome.state == "done":
        value: float | None = outcome.value
        return value
    if outcome.state == "interrupted":
        raise InterruptedRunError(outcome.error, outcome.status - 128)
    following.note("FAILED", outcome.error)
    if sys.stdout.isatty():
        print("\x1b[?25h", end="", flush=True)  # a progress bar that was killed has left the cursor hidden
    if outcome.trace is not None:
        log.error("%s", outcome.trace.rstrip())
    resumable = outcome.killed and membership.current is None
    message = f"{outcome.error.rstrip('.')}; {go_on(work_dir)}" if resumable else outcome.error
    raise RankFailedError(message, outcome.status)


class _Following:
    """Has the tracker follow a run that another process writes."""

    def __init__(self, tracker: Tracker, work_dir: Path) -> None:
        self._tracker = tracker
        self._work_dir = work_dir
        self._since = time.time()
        self._begun = False

    def look(self) -> None:
        """See whether the run has begun."""
        if not self._begun:
            with suppress(FileNotFoundError):
                self._begun = (self._work_dir / FILE).stat().st_mtime >= self._since
            if self._begun:
                self._tracker.follow(self._work_dir)

    def note(self, status: Status, message: str) -> None:
        """Write how it ended, where those who trained could not know."""
        if self._begun:
            with suppress(TrainyardError, OSError), Journal(self._work_dir) as journal:
                journal.status(status, message)


def _whole(cfg: DictConfig) -> DictConfig:
    """The config of a task together with its `hydra` node."""
    hydra: Any = HydraConfig.instance().cfg
    config = cfg.copy()
    with read_write(config), open_dict(config):
        config.hydra = hydra.hydra
    return config


def _resumed(job: _Job, work_dir: Path) -> _Job:
    """The same job, to go on from where it stands; from the checkpoint that it began with while it has none."""
    config = job.config.copy()
    if _has_checkpoint(work_dir) or not isinstance(config.resume, str):
        with read_write(config), open_dict(config):
            config.resume = True
    return replace(job, config=config)


def _has_checkpoint(work_dir: Path) -> bool:
    return (work_dir / "checkpoints" / "last.json").exists()


def _gpus(over: Spread) -> list[str]:
    """The names of the GPUs that the ranks are on, in their order; none on the CPU."""
    import torch

    names = [name.strip() for name in os.environ.get(_GPUS, "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return (names or [str(number) for number in range(count)])[: over.devices] if count else []


# -- the ranks ---------------------------------------------------------------------------------------------------------


def _train_started(job: _Job) -> float | None:
    """What each rank does that `launch` has started."""
    from trainyard.dist import world

    found = world.find()
    assert found is not None
    return _train(job, found)


def _train(job: _Job, own: World) -> float | None:
    """Train as Hydra would have its task do it, and log as the rank does."""
    from trainyard.run import train_rank

    rank = own.rank
    setup_globals()
    membership.current = job.membership
    HydraConfig.instance().set_config(job.config)
    if rank:
        _keep_quiet(job.config, rank)
    else:
        configure_log(job.config.hydra.job_logging, job.config.hydra.verbose)
    cfg = job.config.copy()
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    try:
        return train_rank(cfg, own)
    except TrainyardError as error:
        _note(str(error))
        raise
    except Exception:
        _note(traceback.format_exc())
        raise


def _keep_quiet(config: DictConfig, rank: int) -> None:
    """All that a rank but the first prints or logs goes into files of its own: for `train.log` `train.rank1.log`."""
    folder = Path(config.hydra.runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / f"{config.hydra.job.name}.rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    settings: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=True)
    if settings and settings.get("root"):
        handlers = settings.get("handlers", {})
        files = {name: handler for name, handler in handlers.items() if "filename" in handler}
        for handler in files.values():
            path = Path(handler["filename"])
            handler["filename"] = str(path.with_name(f"{path.stem}.rank{rank}{path.suffix}"))
        settings["handlers"] = files
        for logger in (settings["root"], *settings.get("loggers", {}).values()):
            logger["handlers"] = [name for name in logger.get("handlers", []) if name in files]
        configure_log(OmegaConf.create(settings), config.hydra.verbose)


def _note(text: str) -> None:
    """Write what ended this rank into its file: on the terminal it is told once, by whoever started the ranks."""
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, text.rstrip(), (), None))


def where(frames: Sequence[FrameType]) -> str:
    """The hook that a stack is in, and its stage; nothing where it is in none."""
    from trainyard.runner.dispatch import STAGES

    for frame in frames:
        code = frame.f_code
        if code.co_name in STAGES and code.co_argcount > 1:
            hook, runner = (frame.f_locals.get(name) for name in code.co_varnames[:2])
            hooks = getattr(getattr(runner, "dispatch", None), "hooks", {})
            for name, each in hooks.items():
                if each is hook and not type(hook).__module__.startswith("trainyard.runner"):
                    return f"in the hook {name} ({type(hook).__name__}) at {code.co_name}"
    return ""


# -- ranks that another launcher has started ---------------------------------------------------------------------------


def lead(cfg: DictConfig, over: Spread) -> None:
    """As the first rank, give the others the config: what it says of the time, and of a directory, is for all."""
    from trainyard.dist import world

    if over.world is not None and over.strategy is not None and over.world.world_size > 1:
        store = world.meeting(over.world, over.strategy.timeout)
        store.set(_CONFIG, pickle.dumps(_Job(_whole(cfg))))  # type: ignore[arg-type] # it takes bytes, too


def follow(config_dir: str, config_name: str) -> int | None:
    """Train as a rank after the first, where a launcher has started this process as one.

    Such a process makes no directory and prints nothing: the first rank does.

    Args:
        config_dir: the folder of the configs.
        config_name: the primary config in it.

    Returns:
        The exit status; None where this process is no such rank.
    """
    if not any(os.environ.get(name, "0") not in ("", "0") for name in _NUMBERS):
        return None
    values = _composed(config_dir, config_name)
    from trainyard.dist import world

    try:
        if values is None:  # the first rank says what is wrong
            return None if world.find() is None else TrainyardError.status
        strategy = values.get("strategy") or {}
        found = world.find(strategy.get("launcher", "auto"))
        if found is None or found.is_main:
            return None
        if "launcher" not in strategy:
            return TrainyardError.status
        job = pickle.loads(world.meeting(found, float(strategy.get("timeout", 600.0))).get(_CONFIG))
        _train(job, found)
    except TrainyardError as error:
        return error.status
    return 0


def _composed(config_dir: str, config_name: str) -> DictConfig | None:
    """The config of this command; None where there is none, or many."""
    arguments, _ = get_args_parser().parse_known_args()
    more = [f"hydra.searchpath=[file://{Path(arguments.config_dir).resolve()}]"] if arguments.config_dir else []
    if arguments.multirun:
        return None
    try:
        with initialize_config_dir(config_dir, version_base="1.3"):
            return compose(arguments.config_name or config_name, [*arguments.overrides, *more])
    except Exception:
        return None
