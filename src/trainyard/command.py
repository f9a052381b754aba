"""Training command: composes a config with Hydra, trains, and ends with a status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trainyard.application import MULTIRUN
from trainyard.config.command_line import arranged
from trainyard.config.distinct import DistinctConfigs, TrialResult
from trainyard.config.explain import explain
from trainyard.config.hydra_versions import VERSION_BASE, any_target
from trainyard.config.places import ConfigPlaces
from trainyard.config.schema import check_settings
from trainyard.config.single_composition import composed_once
from trainyard.console import BOLD, coloured, tell
from trainyard.errors import ConfigError, TrainyardError
from trainyard.files import REPEAT, DiskFullError, disk_full, next_step
from trainyard.fused import train as stack_trainer
from trainyard.fused.replay import PLAN, replay
from trainyard.redaction import check_overrides
from trainyard.run import ranks
from trainyard.run.changed import changed
from trainyard.run.rank_job import follow
from trainyard.run.ranks import REPEAT_REPRODUCTION, command_directory, how_to_resume, is_reproduction, shown
from trainyard.run.train import check_file_names, train
from trainyard.starting import PRELOAD, WHOLE
from trainyard.sweep.sweepable import SweepableTask
from trainyard.track.sweep_position import Returned, SweepPosition


def run(config_path: str | Path, config_name: str) -> None:
    """Run the command line: see `trainyard.app.main`.

    Args:
        config_path: the folder of the configs.
        config_name: the primary config in it.
    """
    whole = bool(os.environ[WHOLE])
    directory = str(Path(config_path).resolve())
    places = ConfigPlaces(directory, config_name)

    try:
        sys.argv[1:] = arranged(sys.argv[1:])
        places = ConfigPlaces.of_command(sys.argv[1:], directory, config_name)
        status = follow(places)
        if status is not None:
            sys.exit(status)
        check_overrides(sys.argv[1:])
        places.check()
        with any_target(), composed_once():
            hydra.main(config_path=directory, config_name=config_name, **VERSION_BASE)(Application())()
    except Exception as error:
        overrides = [entry for entry in sys.argv[1:] if entry[:1] != "-" and ("=" in entry or entry[:1] == "~")]
        known: TrainyardError | None = error if isinstance(error, TrainyardError) else None
        full, multirun = disk_full(error), bool({*MULTIRUN} & {*sys.argv})
        if known is None and full is not None:
            # No training was in progress. A sweep may have no manifest yet.
            then = "repeat the command" + (" with the same hydra.sweep.dir" if multirun else "")
            known = DiskFullError(full.filename or Path.cwd(), full, then)
        if known is None and not _is_from_train(error):
            made = "hydra.sweep.dir" if multirun else "hydra.run.dir"
            known = explain(error, overrides, places, made)
        if known is None or whole:
            _print_traceback(error)
        sys.exit(1 if known is None else tell(known))


@dataclass(frozen=True)
class Application(SweepableTask):
    """Task function of single runs and of the jobs of sweeps: `trainyard.run.train.train`, as Hydra calls it.

    Args:
        position: the job's position in its sweep; None for a single run.
    """

    position: SweepPosition | None = None

    tries = True
    resumes = True
    preload = PRELOAD
    fuse = stack_trainer

    def __call__(self, cfg: DictConfig, /) -> Returned:
        """Train; the error of a single run is explained here, and ends the process without a message from Hydra.

        Returns:
            The best objective (None if the run has no objective), or the metrics that its sweep requests.
        """
        if self.position is not None:
            return train(cfg, self.position)
        print(coloured(_first_line(cfg), BOLD, sys.stdout), flush=True)
        try:
            with next_step(_next_step(cfg)):
                return replay(cfg) if os.environ.get(PLAN) else train(cfg)
        except TrainyardError as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN or os.environ.get(WHOLE):
                raise
            sys.exit(tell(error))

    def check(self, config: DictConfig) -> dict[str, Any]:
        """Check a job of a sweep before any job is started.

        Args:
            config: the composed config with its `hydra` node, in which the number and the directory of the job are set.

        Returns:
            The config in plain Python, without its `hydra` node.

        Raises:
            ConfigError: see `trainyard.config.schema.check_settings` and `trainyard.run.train.check_file_names`.
        """
        check_file_names(config.hydra)
        return check_settings(config)

    def try_jobs(self, configs: DistinctConfigs) -> TrialResult:
        """Build the parts of the jobs of a sweep, in a worker: see `trainyard.run.trial`."""
        from trainyard.run.trial import try_jobs

        return try_jobs(configs)

    def slots(self, values: dict[str, Any] | None, room: int) -> int:
        """Return how many slots of a sweep a job takes: one for each device that it trains on.

        Args:
            values: the result of `check`.
            room: the number of slots that a job can take.

        Raises:
            ConfigError: there are too few devices, or another launcher has started this process.
        """
        if values is None or "launcher" not in (values.get("strategy") or {}):
            return 1  # without `ranks.spread`, which imports torch
        over = ranks.spread(values, room)
        if over.world is not None:
            hint = "Start the sweep directly, without torchrun or another launcher."
            raise ConfigError(
                "strategy.launcher",
                values["strategy"]["launcher"],
                "none, because a sweep starts the ranks of its jobs itself",
                hint=hint,
            )
        return over.devices

    def assist(self) -> None:
        """Train the ranks of this node, which is not the first node of the job: see `trainyard.run.ranks`."""
        ranks.assist()

    def changed(self, before: dict[str, Any] | None, after: dict[str, Any] | None, *, ended: bool) -> Sequence[str]:
        """Return the keys that a clone takes from its config instead of the checkpoint: see `trainyard.run.changed`.

        Raises:
            TrainyardError: a value cannot be changed during a training, or nothing is left to train.
        """
        return changed(before or {}, after or {}, ended=ended)

    def at(self, position: SweepPosition) -> Application:
        """Return the task function of the job at this position of a sweep."""
        return replace(self, position=position)


def _next_step(cfg: DictConfig) -> str:
    """Return the next step after a full disk or the loss of the directory.

    A training is resumed. An evaluation, a quick check and a reproduction are repeated.
    """
    if is_reproduction():
        return REPEAT_REPRODUCTION
    if cfg.get("mode", "train") != "train" or cfg.get("quick"):
        return f"{REPEAT}the command in another directory ({command_directory()[0]})"
    return how_to_resume()


def _first_line(cfg: DictConfig) -> str:
    """Return the line that is printed before torch is imported: the model and the data, by option or by class.

    A run without data (`data` is null) has only the model.
    """
    choices = HydraConfig.get().runtime.choices
    classes = {key: str(OmegaConf.select(cfg, f"{key}._target_") or key) for key in ("model", "data")}
    parts = {key: choices.get(key) or name.rpartition(".")[2] for key, name in classes.items()}
    done = {"train": "Training", "val": "Validating", "test": "Testing"}.get(str(cfg.get("mode")), "Running")
    on = "" if OmegaConf.select(cfg, "data") is None else f" on {parts['data']}"
    return f"{done} {parts['model']}{on}, in {shown(Path(HydraConfig.get().runtime.output_dir))}"


def _frames_of_train(error: BaseException) -> TracebackType | None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code is not train.__code__:
        frames = frames.tb_next
    return frames


def _is_from_train(error: BaseException) -> bool:
    return _frames_of_train(error) is not None


def _print_traceback(error: BaseException) -> None:
    """Print the traceback without Hydra's frames before the start of the run."""
    frames = _frames_of_train(error)
    traceback.print_exception(error.with_traceback(frames or error.__traceback__))
