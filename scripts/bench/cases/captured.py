"""Captured step on a CUDA device: time of an iteration from the second epoch on, when everything is captured.

The MLP is that of `step`. One run has a learning rate for each step, which the graph reads from a table. The plain
loops use the fused Adam, over a `DataLoader` as in tutorials, or over data on the device, eager or with a model that is
compiled in the mode with CUDA graphs. The small ResNet trains in bf16 with channels last, on both sides. The members of
stacks differ in learning rate and seed. "Alone" is one such job; a sweep without stacks runs them in turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ours
import torch
from measure import Comparison, Session, Table, Turn, compared, take_turns_here
from torch import Tensor
from work import RATE, Work

from cases.fused import MODELS
from trainyard.data import TensorLoader
from trainyard.fused.runner import FusedRunner
from trainyard.models import Supervised
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.runner.default_hooks import default_hooks

OURS, EAGER, PLAIN, RESIDENT = (
    "trainyard, captured",
    "trainyard, eager",
    "plain PyTorch",
    "plain PyTorch, resident data",
)
COMPILED = "plain PyTorch, compiled"
SCHEDULED = "trainyard, captured, a rate a step"
COSINE = {
    "_target_": "trainyard.schedules.Schedule",
    "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "T_max": "auto"},
    "by": "iter",
}


def tables(session: Session) -> Iterator[Table]:
    work = Work(epochs=session.size(21, 2), device=session.device)
    sides: dict[str, Turn] = {
        OURS: partial(trainyard, work, session.folder),
        SCHEDULED: partial(trainyard, work, session.folder, schedule=COSINE),
        EAGER: partial(trainyard, work, session.folder, capture=False),
        PLAIN: partial(plain, work, resident=False),
        RESIDENT: partial(plain, work),
        COMPILED: partial(plain, work, mode="reduce-overhead"),
    }
    values, failed = take_turns_here(session.fewer(), sides)
    yield Table("Small MLP", "µs per iteration", values, failed, compared(sides, OURS, {PLAIN: 0.2}))

    work = Work("images", session.size(6400, 128), 64, session.size(6, 2), device=session.device)
    sides = {
        OURS: partial(trainyard, work, session.folder, precision="bf16"),
        EAGER: partial(trainyard, work, session.folder, precision="bf16", capture=False),
        RESIDENT: partial(plain, work, bf16=True),
    }
    values, failed = take_turns_here(session.fewer(), sides)
    comparisons = compared(sides, OURS, {RESIDENT: 1.0})
    yield Table("Small ResNet, bf16, channels last", "µs per iteration", values, failed, comparisons)

    for model, width, reach in (("MLP", 256, 1 / 100), ("CNN", 64, 1 / 15.1)):
        width = session.size(width, 4)
        names = {f"K = {width}": width, "alone": 1}
        sides = {name: partial(members, model, count, session) for name, count in names.items()}
        sides["alone, eager"] = partial(members, model, 1, session, capture=False)
        values, failed = take_turns_here(session.fewer(), sides)
        first, *others = sides
        comparisons = [Comparison(first, other, reach) for other in others]
        yield Table(f"Fused: {model}", "µs per member step", values, failed, comparisons)


class Clock(ours.Clock):
    """Hook that measures the seconds from the second epoch to the end of the training."""

    def before_train(self, runner: Runner) -> None:
        """Do nothing: the measurement begins later."""

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == 1:
            self._begin = self.work.now()


def trainyard(work: Work, folder: Path, **arguments: Any) -> float:
    """Time a Runner with its default hooks, whose journal is discarded."""
    clock = Clock(work)
    Runner(
        model=Supervised(net(work), work.loss),
        data={"train": TensorLoader(work.tensors, work.batch, shuffle=True, device=work.device)},
        optim=ours.ADAM,
        hooks={**default_hooks(), "clock": clock},
        loop=EpochBasedTrainLoop(work.epochs),
        device=work.device,
        work_dir=tempfile.mkdtemp(dir=folder),
        **arguments,
    ).train()
    return each(work, clock.seconds)


def plain(work: Work, *, resident: bool = True, bf16: bool = False, mode: str | None = None) -> float:
    """Time a loop written by hand."""
    model, device = net(work).to(work.device), work.device
    trained: Callable[[Tensor], Tensor] = torch.compile(model, mode=mode) if mode else model
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    x, y = (tensor.to(device) for tensor in work.tensors)
    loader = work.loader()
    begin = 0.0
    for epoch in range(work.epochs):
        if epoch == 1:
            begin = work.now()
        places = torch.randperm(work.samples, device=device).split(work.batch)
        for batch in ((x[place], y[place]) for place in places) if resident else loader:
            inputs, target = batch[0].to(device), batch[1].to(device)
            optimizer.zero_grad()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                loss = work.loss(trained(inputs), target)
            loss.backward()
            optimizer.step()
    return each(work, work.now() - begin)


def members(model: str, width: int, session: Session, **arguments: Any) -> float:
    """Time the step of a stack of members, or of one job alone."""
    common = {
        "model": MODELS[model],
        "data": {"_target_": "trainyard.data.Digits", "batch_size": 64},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
        "hook": {},
        "device": session.device,
    }
    configs = [
        common | {"optim": ours.ADAM | {"lr": RATE * (1 + member % 8)}, "seed": member} | arguments
        for member in range(width)
    ]
    runner = FusedRunner(configs) if width > 1 else Runner.from_cfg(configs[0])
    _ = runner.train_loop, runner.model, runner.optimizer
    runner.model.train()
    loader, count, clock = runner.loader("train"), session.size(200, 4), Work(device=session.device)
    batches = list(loader.batches())
    full = [batch for batch in batches if batch[0].shape == batches[0][0].shape]  # the last of an epoch is smaller
    for warm in range(8):
        runner.step(full[warm], warm, len(full))
    begin = clock.now()
    for index in range(count):
        runner.step(full[index % len(full)], index, count)
    return (clock.now() - begin) / count / width * 1e6


def net(work: Work) -> torch.nn.Module:
    """Return the network; one for images has its weights in channels last."""
    found = work.net()
    if work.kind == "images":
        found.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return found


def each(work: Work, seconds: float) -> float:
    """Return the microseconds per iteration, without the first epoch."""
    return seconds / (work.iterations - work.iterations / work.epochs) * 1e6
