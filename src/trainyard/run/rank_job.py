"""Job of one rank, started by `trainyard.run.ranks`, or by torchrun, Slurm or MPI."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.main import get_args_parser  # type: ignore[attr-defined]
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trainyard.config.current_job import current_job
from trainyard.config.hydra_versions import configure_log
from trainyard.config.places import ConfigPlaces
from trainyard.errors import JobPaused, TrainyardError
from trainyard.files import current_step, next_step
from trainyard.starting import RANKS
from trainyard.track.sweep_position import Returned, SweepPosition

if TYPE_CHECKING:
    from trainyard.distributed.world import World

log = logging.getLogger(__name__)

_CONFIG = "config"  # key under which the first rank stores the job for the others


@dataclass(frozen=True)
class RankJob:
    """Data that a rank needs.

    Args:
        config: the config, with its `hydra` node.
        function: called with the config that Hydra passes to a task function, the rank, and `position`.
        position: the run's position in its sweep; None for a single run.
        then: the next step for the user after a full disk: that of the process that starts the ranks.
    """

    config: DictConfig
    function: Callable[[DictConfig, World, SweepPosition | None], Returned | JobPaused]
    position: SweepPosition | None = None
    then: str = field(default_factory=current_step)


def whole(cfg: DictConfig) -> DictConfig:
    """Return the config of a task function together with its `hydra` node."""
    hydra: Any = HydraConfig.instance().cfg
    config = cfg.copy()
    with read_write(config), open_dict(config):
        config.hydra = hydra.hydra
    return config


def run_started(job: RankJob) -> Returned | JobPaused:
    """Run the job of a rank that `trainyard.distributed.launch` has started."""
    from trainyard.distributed import world

    found = world.find()
    assert found is not None
    return _run(job, found)


def _run(job: RankJob, own: World) -> Returned | JobPaused:
    """Run the job like Hydra runs its task function, with the logging of the rank."""
    rank = own.rank
    setup_globals()
    with current_job(job.config), next_step(job.then):
        if rank:
            _keep_quiet(job.config, rank)
        else:
            configure_log(job.config.hydra.job_logging, job.config.hydra.verbose)
        cfg = job.config.copy()
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        try:
            return job.function(cfg, own, job.position)
        except TrainyardError as error:
            _note(str(error))
            raise
        except Exception as error:
            place = where([frame for frame, _ in traceback.walk_tb(error.__traceback__)])
            _note(f"{traceback.format_exc().rstrip()}\nThe rank was {place or 'not in a hook'}.")
            raise


def _keep_quiet(config: DictConfig, rank: int) -> None:
    """Redirect output and logs of every rank except the first to separate files: `train.rank1.log` for `train.log`."""
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
    """Write the error that ended this rank into its file. The process that started the ranks shows it on the terminal
    once."""
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, text.rstrip(), (), None))


def where(frames: Sequence[FrameType]) -> str:
    """Return the hook in a call stack, and its stage; empty if there is none."""
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


def lead(job: RankJob, own: World, timeout: float) -> None:
    """Send the job from the first rank to the others, so that all ranks use the same times and directories."""
    from trainyard.distributed import world

    world.meeting(own, timeout).set(_CONFIG, pickle.dumps(job))  # type: ignore[arg-type] # it takes bytes, too


def follow(places: ConfigPlaces) -> int | None:
    """Run the job of a rank other than the first, if a launcher has started this process as such a rank.

    Only the first rank creates directories and prints.

    Args:
        places: the places of the configs.

    Returns:
        The exit status; None if this process is not such a rank.
    """
    if not any(os.environ.get(name, "0") not in ("", "0") for name in RANKS):
        return None
    values = _composed(places)
    from trainyard.distributed import world

    try:
        if values is None:  # the first rank reports the error
            return None if world.find() is None else TrainyardError.status
        strategy = values.get("strategy") or {}
        found = world.find(strategy.get("launcher", "auto"))
        if found is None or found.is_main:
            return None
        if "launcher" not in strategy:
            return TrainyardError.status
        job = pickle.loads(world.meeting(found, float(strategy.get("timeout", 600.0))).get(_CONFIG))
        _run(job, found)
    except TrainyardError as error:
        return error.status
    return 0


def _composed(places: ConfigPlaces) -> DictConfig | None:
    """Return the config of this command; None if there is none or more than one."""
    arguments, _ = get_args_parser().parse_known_args()
    if arguments.multirun:
        return None
    try:
        return places.compose(arguments.overrides)
    except Exception:
        return None
