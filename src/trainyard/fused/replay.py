"""Replay of a job's lineage: each segment in the lane, and at the width, in which its sweep trained it.

The other lanes are free and stay free, because a row does not depend on the other rows. On the same kind of CPU, the
results are therefore bit-identical to those of the sweep. A segment of a stack that cannot have free lanes is trained
alone, and its results may differ by rounding.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from trainyard.config.current_job import current_job
from trainyard.errors import JobPaused, PlacesDiffer, TrainyardError
from trainyard.fused.results import MemberResult
from trainyard.fused.train import train_stack
from trainyard.run.rank_job import whole
from trainyard.run.train import train
from trainyard.track.sweep_position import Returned, Rungs, SweepPosition

if TYPE_CHECKING:
    from trainyard.fused.job_lanes import Place

log = logging.getLogger(__name__)

PLAN = "TRAINYARD_REPLAY"
"""Environment variable with the path of the plan: `{"segments": […]}`, as `trainyard.catalog.again` writes it."""
INHERITED = "inherited"
"""Folder with the checkpoint from which the last heir started: `trainyard.catalog.lineage.INHERITED`."""


def replay(cfg: DictConfig) -> Returned:
    """Train the segments of the plan named by the environment, one after the other, in the run's directory.

    Args:
        cfg: the config, as Hydra gives it to a task function.

    Returns:
        The best objective of the last segment; None if it has none.

    Raises:
        TrainyardError: a segment did not reach its end.
    """
    import torch

    segments = json.loads(Path(os.environ[PLAN]).read_text(encoding="utf-8"))["segments"]
    directory = Path(HydraConfig.get().runtime.output_dir)
    base = whole(cfg)
    value: Returned = None
    for index, segment in enumerate(segments):
        own = {"resume_override": segment["keys"] or None, "resume": index > 0}
        if segment["heir"]:
            own["resume"] = str(_bequeathed(directory))
        torch.set_num_threads(segment["threads"])
        where = f"in lane {segment['lane']} of a stack of {segment['width']}" if segment["width"] else "alone"
        log.info("Training job #%d %s until %s.", segment["num"], where, _place(segment))
        value = _train(_config(base, segment["config"] | own), segment)
    return value


def _config(base: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Return a config with these values, and with the directory and the `hydra` node of the base."""
    config = base.copy()
    with read_write(config), open_dict(config):
        for key in [str(key) for key in config if key not in {*values, "hydra", "work_dir"}]:
            del config[key]
        for key, value in values.items():
            config[key] = value
    return config


def _bequeathed(directory: Path) -> Path:
    """Move the checkpoints away, because an heir starts without its own, and return the newest."""
    from trainyard.files import remove
    from trainyard.runner import checkpoint

    remove(directory / INHERITED)
    (directory / "checkpoints").rename(directory / INHERITED)
    found = checkpoint.newest(directory / INHERITED)
    if found is None:
        raise TrainyardError(f"{directory / INHERITED} contains no checkpoint to continue from.")
    return found[0]


def _train(config: DictConfig, segment: Mapping[str, Any]) -> Returned:
    end, by = segment["end"], segment["by"]
    position = SweepPosition(None, (), str(config.name), rungs=None if end is None else Rungs((end,), by, end))
    if segment["width"]:
        try:
            return _train_in_lane(config, position, segment)
        except PlacesDiffer as error:  # no job joined the stack of the sweep either
            log.info(
                "Training job #%d alone, because a stack of this job cannot have free lanes: %s.",
                segment["num"],
                error,
            )
    with current_job(config):
        own = config.copy()
        with read_write(own), open_dict(own):
            del own["hydra"]
        try:
            return train(own, position)
        except JobPaused:
            return None


def _train_in_lane(config: DictConfig, position: SweepPosition, segment: Mapping[str, Any]) -> Returned:
    """Train a segment in its lane of a stack whose other lanes are free.

    Raises:
        PlacesDiffer: a part of the training needs all lanes at the same position, so no lane can be free.
        TrainyardError: the segment did not reach its end.
    """
    source, end = _NoMore(), segment["end"]
    found = train_stack([config], [position], source, [segment["lane"]], segment["width"])
    result = source.result or found[0]
    if result is None or result.state != ("done" if end is None else "paused"):
        raise TrainyardError((result and result.error) or f"The training did not reach {_place(segment)}.")
    return result.value


def _place(segment: Mapping[str, Any]) -> str:
    """Return the end of a segment, for users: `its end`, `epoch 3` or `iteration 300`."""
    unit = {"epoch": "epoch", "iter": "iteration"}[segment["by"]]
    return "its end" if segment["end"] is None else f"{unit} {segment['end']}"


class _NoMore:
    """Source without jobs, which keeps lanes free to the end: a `trainyard.fused.job_lanes.JobSource`."""

    def __init__(self) -> None:
        self.closed = False
        self.result: MemberResult | None = None

    def take(
        self, count: int, *, wait: bool, interrupted: Callable[[], bool]
    ) -> Sequence[tuple[int, DictConfig, SweepPosition]]:
        self.closed = wait
        return []

    def placed(self, places: Sequence[Place], width: int) -> None:
        """Do nothing: the lanes are as planned."""

    def left(self, number: int, result: MemberResult) -> None:
        self.result = result

    def refused(self, number: int, reason: str) -> None:
        """Do nothing: no job joins."""

    def asked(self) -> Sequence[tuple[int, bool]]:
        return ()

    def unfed(self) -> None:
        """Do nothing: no jobs join."""
