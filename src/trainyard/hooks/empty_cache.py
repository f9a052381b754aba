"""Empty-cache hook: releases the unused CUDA memory of torch's allocator."""

from __future__ import annotations

import logging
from typing import Any

import torch

from trainyard.checks import boolean
from trainyard.runner import Runner
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")


class EmptyCache(Hook):
    """Calls `torch.cuda.empty_cache` at the ends of epochs, so that other processes on the GPU can use the memory.

    The hook does not speed up training. Validations and tests count as epochs. On other devices, the hook only logs one
    message.

    Args:
        before_epoch: release memory at the start of every epoch.
        after_epoch: release memory at the end of every epoch.
        after_iter: release memory after every iteration. This is slow, because the released memory is allocated again.
    """

    priority = "NORMAL"
    stackable = True
    own_places = True

    def __init__(self, before_epoch: bool = False, after_epoch: bool = True, after_iter: bool = False) -> None:
        stages = {"before_{}_epoch": before_epoch, "after_{}_epoch": after_epoch, "after_{}_iter": after_iter}
        for key, wanted in (("before_epoch", before_epoch), ("after_epoch", after_epoch), ("after_iter", after_iter)):
            boolean(key, wanted)
        for stage, wanted in stages.items():
            for split in ("train", "val", "test") if wanted else ():
                setattr(self, stage.format(split), self._empty)  # a stage that is not set costs nothing

    def before_run(self, runner: Runner) -> None:
        if runner.device.type != "cuda":
            log.info("EmptyCache has no effect, because the run is on %s.", runner.device)

    @staticmethod
    def _empty(runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.device.type == "cuda":
            torch.cuda.empty_cache()
