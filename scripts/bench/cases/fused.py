"""Time of a member's step: stacks of K members compared with one process per job, on all cores.

Each core has a process with one thread, which trains on resident digits data with Adam and batch size 64, without
hooks. "Alone" and "K = 1" are single jobs. "By hand" is a loop over `DataLoader(TensorDataset)`. The time is for all
cores together: with two cores, a step of 100 µs on each core counts as 50 µs.

**Result:** the smaller the model, the more a stack saves ([parts of a step](performance.md#a-step-of-a-stack)).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

from measure import Comparison, Session, Table, take_turns_here

MODELS: dict[str, dict[str, Any]] = {
    "MLP": {"_target_": "trainyard.models.MLP", "in_features": 64, "num_classes": 10, "hidden": [64, 64]},
    "CNN": {"_target_": "trainyard.models.CNN", "in_channels": 1, "num_classes": 10, "channels": [8, 16]},
    "transformer": {
        "_target_": "trainyard.models.Transformer",
        "vocab_size": "auto",
        "context_length": 32,
        "dim": 32,
        "heads": 2,
        "layers": 1,
        "dropout": 0.0,
    },
}
HAND = "by hand"
ALONE = "alone"


def tables(session: Session) -> Iterator[Table]:
    models = list(MODELS) if session.full else ["MLP", "CNN"]
    widths = [1, 4, 16, 64, 256] if session.full else [16] if session.quick else [1, 16, 64]
    seconds = 0.2 if session.quick else 1.0
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in cores]
    workers = [context.Process(target=_work, args=(end, core)) for (_, end), core in zip(ends, cores, strict=True)]
    for worker in workers:
        worker.start()
    pipes = [pipe for pipe, _ in ends]
    for _, end in ends:
        end.close()  # so that the end of a worker is noticed
    try:
        for model in models:
            names = [HAND, ALONE, *(f"K = {width}" for width in widths)]
            sides = {name: partial(_measure, pipes, model, name, seconds) for name in names}
            values, failed = take_turns_here(session.fewer(), sides, warm=False)
            comparisons = [Comparison(name, ALONE) for name in names[2:]] + [
                Comparison(name, HAND) for name in names[1:]
            ]
            yield Table(f"Fused: {model}", "µs per member step, all cores together", values, failed, comparisons)
    finally:
        for pipe, worker in zip(pipes, workers, strict=True):
            if worker.is_alive():
                pipe.send(None)
            worker.join()


def _measure(pipes: list[Connection], model: str, name: str, seconds: float) -> float:
    for pipe in pipes:
        pipe.send((model, name, seconds))
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("go")
    return 1e6 / sum(float(pipe.recv()) for pipe in pipes)


def _work(pipe: Connection, core: int) -> None:
    """Prepare a case on one core, step on request, and report the steps made."""
    os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    while (case := pipe.recv()) is not None:
        model, name, seconds = case
        run = (
            _by_hand(model) if name == HAND else stepping(model, 1 if name == ALONE else int(name.removeprefix("K = ")))
        )
        run(seconds / 4)
        pipe.send("ready")
        pipe.recv()
        begin = perf_counter()
        steps = run(seconds)
        pipe.send(steps / (perf_counter() - begin))


def config(model: str, member: int) -> dict[str, Any]:
    text = {"_target_": "trainyard.data.Text", "context_length": 32, "batch_size": 64}
    return {
        "model": MODELS[model],
        "data": text if model == "transformer" else {"_target_": "trainyard.data.Digits", "batch_size": 64},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3 * (1 + member % 8), "fused": True},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
        "hook": {},
        "device": "cpu",
        "seed": member,
    }


def stepping(model: str, width: int) -> Callable[[float], int]:
    """Return a function that steps for some seconds, epoch after epoch, and counts the steps of all members."""
    from trainyard.data.lengths import exact_length
    from trainyard.fused.runner import FusedRunner
    from trainyard.runner import Runner

    configs = [config(model, member) for member in range(width)]
    runner = FusedRunner(configs) if width > 1 else Runner.from_cfg(configs[0])
    _ = runner.train_loop, runner.model, runner.optimizer
    step, loader, epoch = runner.step, runner.loader("train"), 0
    runner.model.train()

    def run(seconds: float) -> int:
        nonlocal epoch
        steps, end = 0, perf_counter() + seconds
        while True:
            for index, batch in enumerate(loader.batches(epoch)):
                step(batch, index, exact_length(loader) or 0)
                steps += 1
                if perf_counter() > end:
                    return steps * width
            epoch += 1

    return run


def _by_hand(model: str) -> Callable[[float], int]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from trainyard.runner import Runner

    runner = Runner.from_cfg(config(model, 0))
    module, criterion = runner.model, torch.nn.CrossEntropyLoss()
    batches = list(runner.loader("train").batches())
    dataset = TensorDataset(*(torch.cat(column) for column in zip(*batches, strict=True)))
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def run(seconds: float) -> int:
        steps, end = 0, perf_counter() + seconds
        while True:
            for x, y in loader:
                optimizer.zero_grad()
                outputs = module(x, y, mode="tensor")
                criterion(outputs.flatten(0, -2), y.flatten()).backward()
                optimizer.step()
                steps += 1
                if perf_counter() > end:
                    return steps

    return run
