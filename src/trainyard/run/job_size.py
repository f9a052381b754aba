"""Size of a job before it runs: bytes of checkpoints and rows in MLflow, estimated from its parts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from trainyard.config.build import build
from trainyard.config.distinct import JobSize
from trainyard.hooks import Checkpoint, Logger
from trainyard.runner.parts import Parts
from trainyard.track import NoTracker

log = logging.getLogger(__name__)

_TRAINED = 4  # values of a point of the training: loss, learning rate, time, time of the data


def estimate(parts: Parts, names: Sequence[str], tracker: Any) -> JobSize | None:
    """Return the size of the results of a training; None if unknown.

    Args:
        parts: the parts of the training, built; the model may be on the meta device.
        names: the metrics of a validation.
        tracker: the tracker, or its config.
    """
    try:
        return job_size(parts, names, tracked=not isinstance(build(tracker, "tracker"), NoTracker | None))
    except Exception as error:  # parts of a user's own may lack what this reads
        log.debug("The size of the job cannot be estimated: %r", error)
        return None


def job_size(parts: Parts, names: Sequence[str], *, tracked: bool) -> JobSize | None:
    """Return the size of the results of a training; None if its length is unknown.

    A checkpoint contains the model and the state of the optimizer, which has the size of the model for each moment.

    Args:
        parts: the parts of the training, built; the model may be on the meta device.
        names: the metrics of a validation.
        tracked: whether metrics go to MLflow.
    """
    loop = parts.train_loop
    epochs, iterations = loop.max_epochs(parts), loop.max_iters(parts)
    count = epochs if loop.unit == "epoch" else iterations
    if count is None or iterations is None:
        return None
    model = parts.model
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    trained = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    defaults = getattr(parts.optimizer, "defaults", {})
    moments = len(defaults.get("betas", ())) or ("alpha" in defaults) + bool(defaults.get("momentum"))
    checkpoints = rows = 0
    for hook in parts.dispatch.hooks.values():
        if isinstance(hook, Checkpoint):
            saves = max(1, count // (hook.interval or loop.val_interval))
            kept = saves if hook.max_keep is None else min(hook.max_keep, saves)
            checkpoints += (weights + moments * trained) * (kept + hook.save_best)
        elif isinstance(hook, Logger) and tracked:
            rows += _TRAINED * max(1, iterations // hook.interval)
            rows += len(names) * max(1, count // loop.val_interval)
    return JobSize(checkpoints, rows)
