"""Offline run of Weights & Biases, written from a run's journal once no process writes the journal any more."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trainyard.track import journal
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import checksum_before
from trainyard.track.shipper.copies import Position

FOLDER = "wandb"


def copy(work_dir: Path, info: RunInfo, position: Position) -> Position:
    """Rewrite the complete run as an offline run, which `wandb sync` uploads.

    The history accepts steps only in ascending order, so values of one step are combined. An earlier folder is removed,
    because the run may have continued since, or a process was killed while writing.

    Returns:
        The position of the end of the journal.
    """
    os.environ |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_DISABLE_CODE": "true"}
    import wandb

    path = work_dir / journal.FILE
    shutil.rmtree(work_dir / FOLDER, ignore_errors=True)
    (work_dir / FOLDER).mkdir()
    steps: dict[int, dict[str, float]] = {}
    offset = 0
    for record, end in journal.read(path):
        if record["kind"] == "metrics":
            steps.setdefault(record["step"], {"_timestamp": record["time"]}).update(record["values"])
        offset = end
    settings = wandb.Settings(disable_git=True, x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(
        mode="offline",
        dir=str(work_dir),
        project=info.experiment or "trainyard",
        id=info.id,
        name=info.name,
        config=dict(info.params),
        settings=settings,
    )
    for step in sorted(steps):
        run.log(steps[step], step=step)
    run.finish(exit_code=0)
    return Position(offset, checksum_before(path, offset))
