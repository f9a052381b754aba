"""Runtime information hook: facts about the run, logged once at its start."""

from __future__ import annotations

import logging

import torch

from trainyard.runner import Runner
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")


class RuntimeInfo(Hook):
    """Logs the size of the model and the data and the baselines of the data, and tags the run with them."""

    priority = "VERY_HIGH"
    stackable = True

    def before_run(self, runner: Runner) -> None:
        model = runner.members[0].model
        parameters = sum(parameter.numel() for parameter in model.parameters())
        kind = type(model).__name__
        tags = {"model": kind, "parameters": str(parameters), "device": str(runner.device)}
        if runner.device.type == "cuda":
            tags["gpu"] = torch.cuda.get_device_name(runner.device)
        log.info("%s with %s parameters.", kind, f"{parameters:,}")
        for member in runner.members:
            member.journal.tags(tags)

    def before_train(self, runner: Runner) -> None:
        loader, loop = runner.loader("train"), runner.train_loop
        log.info(
            "%s samples, %d batches of %d an epoch; %d epochs, %d iterations.",
            f"{loader.num_samples:,}",
            len(loader),
            loader.batch_size,
            loop.max_epochs(runner),
            loop.max_iters(runner),
        )
        for split in runner.sets("val"):
            assert runner.data is not None
            for name, value in runner.data.baselines(split).items():
                log.info("Baseline to beat: %s/%s %.4f.", split, name, value)
                for member in runner.members:
                    member.record({f"{split}/{name}": value}, step=0, epoch=0)
