"""Runtime information hook: facts about the run, logged once at its start."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from trainyard.data.lengths import exact_length, length_hint, samples_hint, stated_size
from trainyard.data.nothing import NoLoader
from trainyard.distributed.shares import class_of
from trainyard.errors import counted
from trainyard.runner import Runner
from trainyard.runner.contract import extent
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")


class RuntimeInfo(Hook):
    """Logs the size of the model, the size of the training data, the length of the run, and the baselines of the data.

    The hook records the baselines at iteration 0. The tags of the run are the class and the size of the model, the
    device, the number of threads and, for a stack, its width.
    """

    priority = "VERY_HIGH"
    stackable = True
    own_places = True

    def before_run(self, runner: Runner) -> None:
        model = runner.members[0].model
        parameters = sum(parameter.numel() for parameter in model.parameters())
        kind = class_of(model).__name__
        tags = {"model": kind, "parameters": str(parameters), "device": str(runner.device)}
        tags["threads"] = str(torch.get_num_threads())
        if runner.stacked:
            tags["stack_width"] = str(len(runner.members))
        if runner.device.type == "cuda":
            tags["gpu"] = torch.cuda.get_device_name(runner.device)
        told = "%s with %s parameters." if parameters != 1 else "%s with %s parameter."
        log.info(told, kind, f"{parameters:,}")
        self._tags = tags
        for member in runner.members:
            member.journal.tags(tags)

    def before_train(self, runner: Runner) -> None:
        log.info("%s.", _sizes(runner))
        for split in runner.sets("val"):
            assert runner.data is not None
            for name, value in runner.data.baselines(split).items():
                log.info("Baseline to beat: %s/%s %.4f.", split, name, value)
                for member in runner.members:
                    member.record({f"{split}/{name}": value}, step=0, epoch=0)

    def refill(self, runner: Runner, members: Mapping[int, Hook | None]) -> None:
        for lane in members:
            member = runner.members[lane]
            member.journal.tags(self._tags)
            for split in runner.sets("val"):
                assert runner.data is not None
                for name, value in runner.data.baselines(split).items():
                    member.record({f"{split}/{name}": value}, step=0, epoch=0)


def _sizes(runner: Runner) -> str:
    """Return the size of the training data and the length of the run; estimates are marked with `about`."""
    loader, loop = runner.loader("train"), runner.train_loop
    samples, batches = samples_hint(loader), length_hint(loader)
    no_data = isinstance(loader, NoLoader)
    about = "" if no_data or exact_length(loader) is not None else "about "
    size = stated_size(loader)
    of_size = "of unknown size" if size is None else f"of {size}"
    of_epoch = "no training data" if no_data else f"an unknown number of batches {of_size} per epoch"
    if batches is not None:
        known = "" if samples is None else f"{samples:,} samples, " if samples != 1 else "1 sample, "
        of_epoch = f"{about}{known}{counted(batches, 'batch', 'batches')} {of_size} per epoch"
    epochs, iters = extent(loop, runner)
    counts = (("epoch", "epoch", epochs), ("iter", "iteration", iters))
    of_run = [
        f"{'' if unit == loop.unit else about}{counted(count, name)}"
        for unit, name, count in counts
        if count is not None
    ]
    return f"{of_epoch[0].upper()}{of_epoch[1:]}; {', '.join(of_run)}"
