"""The application: one config in, one objective out."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from trainyard.config.build import build
from trainyard.config.explain import explain
from trainyard.errors import TrainyardError
from trainyard.track import NoTracker, Shipment, Tracker, facts, membership

if TYPE_CHECKING:
    from trainyard.runner import Runner

log = logging.getLogger(__name__)


WHOLE = "TRAINYARD_FULL_ERROR"  # set by `main`: show tracebacks also where a message explains all


class RunFailedError(TrainyardError):
    """The training ended before its time, and not because anybody asked for it."""

    status = 1


class InterruptedRunError(TrainyardError):
    """The training was asked to end, saved a checkpoint, and can be resumed."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


def main(config_path: str | Path, config_name: str = "train") -> None:
    """The command line: compose the config with Hydra, train, and end with a status.

    Errors that their message explains in full are shown as one paragraph, without a traceback (set HYDRA_FULL_ERROR=1
    to see it all the same): status 2 for a wrong config, 1 for a failed training, 128 + n after signal n.

    Args:
        config_path: the folder of the configs.
        config_name: the primary config in it.
    """
    whole = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ[WHOLE] = "1" if whole else ""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes exceptions on, so that they are explained here
    directory = str(Path(config_path).resolve())

    try:
        hydra.main(version_base="1.3", config_path=directory, config_name=config_name)(job)()
    except Exception as error:
        overrides = [entry for entry in sys.argv[1:] if entry[:1] != "-" and ("=" in entry or entry[:1] == "~")]
        known: TrainyardError | None = error if isinstance(error, TrainyardError) else None
        if known is None and not _is_from_train(error):
            known = explain(error, overrides, directory, config_name)
        if known is None or whole:
            _print_traceback(error)
        sys.exit(1 if known is None else _tell(known))
    except KeyboardInterrupt:  # before there was a run, or the second in a run: nobody needs to see where that was
        if whole:
            raise
        print("\nEnded.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def job(cfg: DictConfig) -> float | None:
    """`train`, as Hydra calls it: a run by itself ends here, where its error is explained, and Hydra adds no words."""
    try:
        return train(cfg)
    except TrainyardError as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN or os.environ.get(WHOLE):
            raise
        sys.exit(_tell(error))


def check_job(config: DictConfig, directory: Path) -> None:
    """Check a job of a sweep before any is started.

    Args:
        config: as Hydra composed it, with its `hydra` node, in which the job's number and directory are set.
        directory: where the job will run.

    Raises:
        ConfigError: see `trainyard.config.schema.check`.
    """
    from trainyard.config.schema import check

    check(config)


job.check = check_job  # type: ignore[attr-defined]
job.resumes = True  # type: ignore[attr-defined]


def _tell(error: TrainyardError) -> int:
    """Print an error as one paragraph; returns the status to exit with."""
    width = shutil.get_terminal_size().columns
    for line in str(error).splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        wrapped = textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        print(wrapped, file=sys.stderr)
    return error.status


def train(cfg: DictConfig) -> float | None:
    """Train (or evaluate) what a composed config describes, in a job of Hydra's.

    Returns:
        The best objective; None where the run has none.

    Raises:
        TrainyardError: with the exit status that the command should have.
    """
    with _nothing_left_behind(Path(HydraConfig.get().runtime.output_dir)):
        tracker = build(cfg.get("tracker"), "tracker") or NoTracker()
        if membership.current is not None:
            tracker.leave_shipping()
        tracker.start()  # its process imports MLflow while this one imports torch
        collected = facts.begin(Path.cwd())
        from trainyard import record
        from trainyard.config.schema import check
        from trainyard.runner import Runner

        if membership.current is None:  # the jobs of a sweep were checked before the first of them began
            check(cfg)
        runner = Runner.from_cfg(cfg, tracker=tracker, info=record.describe(cfg, collected()))
        runner.prepare(cfg.mode)
    try:
        with _interruptible(runner) as caught, runner.session():
            record.write_files(runner, cfg)
            _run(runner, cfg.mode)
            record.name_artifacts(runner)
        _raise_if_ended_early(runner, caught)
    finally:
        _report(_ship(tracker))
    return _objective(runner)


def _run(runner: Runner, mode: str) -> None:
    if mode == "val":
        runner.val()
    elif mode == "test":
        runner.test()
    else:
        runner.train()
        if runner.has_split("test") and not runner.interrupted and not runner.members[0].failed:
            runner.load_best()
            runner.test()
        _summarize(runner)


def _summarize(runner: Runner) -> None:
    (member,) = runner.members
    name, best = member.objective.name, member.best
    if member.stop_reason is not None:
        log.info("Stopped early: %s.", member.stop_reason)
    file = member.checkpoints / "best.pt"
    if best is not None:
        tested = member.metrics.get(name.replace("val/", "test/"))
        which = "on the test set" if file.exists() else "the last weights, on the test set,"
        test = "" if tested is None else f"; {which} {tested:.4f}"
        log.info("Best %s %.4f, at epoch %d (iteration %d)%s.", name, best.value, best.epoch, best.iter, test)
    if file.exists():
        log.info("Checkpoint: %s", _shown(file))


def _ship(tracker: Tracker) -> Shipment:
    """Wait for the rest to be shipped; say so where that takes long."""
    notice = threading.Timer(3.0, log.info, ["Shipping to MLflow. Ctrl-C leaves it to the background."])
    notice.daemon = True
    notice.start()
    try:
        return tracker.finish()
    finally:
        notice.cancel()


def _report(shipment: Shipment) -> None:
    """Say where the run can be looked at, and what is not there yet."""
    for run in shipment.runs:
        if run.where:
            log.info("MLflow: run %r; %s", run.name, run.where)
    if str(shipment):
        log.warning("%s", shipment)


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _objective(runner: Runner) -> float | None:
    member = runner.members[0]
    return member.metrics.get(member.objective.name) if member.best is None else member.best.value


def _raise_if_ended_early(runner: Runner, caught: list[int]) -> None:
    (member,) = runner.members
    if caught:
        further = f"go on with the same command and hydra.run.dir={_shown(member.directory)} resume=true"
        if not any(member.checkpoints.glob("*.pt")):
            further = "there is no checkpoint to go on from."
        raise InterruptedRunError(f"Interrupted at iteration {runner.iter}; {further}", caught[0])
    if member.failed:
        raise RunFailedError(f"The training failed: {member.stop_reason}.")


@contextmanager
def _interruptible(runner: Runner) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM ends the run with a checkpoint, the second ends it now. Gives the signals caught."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def first(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a data loader's process, forked while this was set: the signal is for the trainer
            return
        caught.append(signum)
        runner.interrupt()
        for each, handler in before.items():
            signal.signal(each, handler)
        os.write(2, b"\nInterrupted: saving a checkpoint. Once more ends the run now.\n")

    owner = os.getpid()
    before: dict[int, Any] = {each: signal.signal(each, first) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _nothing_left_behind(directory: Path) -> Iterator[None]:
    """Where nothing comes of the run, remove what Hydra has made for the run: its copy of the config, its log.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM ended the block.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signum)

    on_main = threading.current_thread() is threading.main_thread()
    before: Any = signal.signal(signal.SIGTERM, end) if on_main else None
    try:
        yield
    except BaseException as error:
        if not (directory / "metrics.jsonl").exists():
            job = HydraConfig.get()
            if job.output_subdir is not None:
                shutil.rmtree(directory / job.output_subdir, ignore_errors=True)
            (directory / f"{job.job.name}.log").unlink(missing_ok=True)
            for folder in (directory, *directory.parents):
                if folder == Path.cwd() or any(folder.iterdir()):
                    break
                folder.rmdir()
        if isinstance(error, KeyboardInterrupt):
            signum = error.args[0] if error.args else signal.SIGINT
            raise InterruptedRunError("Interrupted before the run began.", signum) from None
        raise
    finally:
        if on_main:
            signal.signal(signal.SIGTERM, before)


def _frames_of_train(error: BaseException) -> TracebackType | None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code is not train.__code__:
        frames = frames.tb_next
    return frames


def _is_from_train(error: BaseException) -> bool:
    return _frames_of_train(error) is not None


def _print_traceback(error: BaseException) -> None:
    """The traceback from the place on where the run began: what Hydra did before that helps nobody."""
    frames = _frames_of_train(error)
    traceback.print_exception(error.with_traceback(frames or error.__traceback__))
