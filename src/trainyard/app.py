"""The application: one config in, one objective out."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from trainyard.config.explain import explain
from trainyard.errors import ConfigError, TrainyardError
from trainyard.fused import train as stack_trainer
from trainyard.run import ranks
from trainyard.run.rank_job import follow
from trainyard.run.train import train
from trainyard.sweep.sweepable import SweepableTask
from trainyard.track.sweep_position import SweepPosition

WHOLE = "TRAINYARD_FULL_ERROR"  # set by `main`: show tracebacks also where a message explains all


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

    status = follow(directory, config_name)
    if status is not None:
        sys.exit(status)
    try:
        hydra.main(version_base="1.3", config_path=directory, config_name=config_name)(Application())()
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


@dataclass(frozen=True)
class Application(SweepableTask):
    """`trainyard.run.train.train`, as Hydra calls it: the task function of single runs and of the jobs of sweeps.

    Args:
        position: the job's position in its sweep; None for a run by itself.
    """

    position: SweepPosition | None = None

    resumes = True
    preload = ("torch", "numpy.random", "trainyard.hooks", "trainyard.run.record", __name__, "trainyard.fused.runner")
    fuse = stack_trainer

    def __call__(self, cfg: DictConfig, /) -> float | None:
        """Train; a run by itself ends here, where its error is explained, and Hydra adds no words.

        Returns:
            The best objective; None where the run has none.
        """
        try:
            return train(cfg, self.position)
        except TrainyardError as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN or os.environ.get(WHOLE):
                raise
            sys.exit(_tell(error))

    def check(self, config: DictConfig) -> dict[str, Any]:
        """Check a job of a sweep before any is started.

        Args:
            config: as Hydra composed it, with its `hydra` node, in which the job's number and directory are set.

        Returns:
            The config in plain Python, without its `hydra` node.

        Raises:
            ConfigError: see `trainyard.config.schema.check`.
        """
        from trainyard.config.schema import check

        values = check(config)
        if ranks.spread(values).world is not None:
            hint = "A sweep is started by itself, without torchrun or another launcher."
            raise ConfigError("strategy.launcher", values["strategy"]["launcher"], "none, in a sweep", hint=hint)
        return values

    def slots(self, values: dict[str, Any] | None) -> int:
        """Return how many slots of a sweep a job takes: one for each device that it trains on."""
        return ranks.spread(values or {}).devices

    def at(self, position: SweepPosition) -> Application:
        """Return the task function of the job at this position of a sweep."""
        return replace(self, position=position)


def _tell(error: TrainyardError) -> int:
    """Print an error as one paragraph; returns the status to exit with."""
    width = shutil.get_terminal_size().columns
    for line in str(error).splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        wrapped = textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        print(wrapped, file=sys.stderr)
    return error.status


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
