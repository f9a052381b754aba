"""Member-steps a second: fused groups of K members against one process a job, on all cores.

On each core one process with one thread trains on resident data with Adam: a group of K members that differ in learning
rate and seed, or one job alone, as the sweep runs it without fusing; `by hand` is the loop that tutorials write, with
`DataLoader(TensorDataset)`. All processes step at the same time, for the same seconds; the cases take turns.

    python scripts/bench/fused.py [--models mlp cnn transformer] [--widths 1 4 16 64 256] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"_target_": "trainyard.models.MLP", "in_features": 64, "num_classes": 10, "hidden": [64, 64]},
    "cnn": {"_target_": "trainyard.models.CNN", "in_channels": 1, "num_classes": 10, "channels": [8, 16]},
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
SOLO = "alone"


def _config(model: str, member: int) -> dict[str, Any]:
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


def _runner(model: str, width: int) -> Callable[[float], int]:
    """What steps for so many seconds, over the batches of epoch after epoch, and counts the steps of all members."""
    from trainyard.runner import Runner
    from trainyard.runner.fused import FusedRunner

    configs = [_config(model, member) for member in range(width)]
    runner = FusedRunner(configs) if width > 1 else Runner.from_cfg(configs[0])
    _ = runner.train_loop, runner.model, runner.optimizer
    step, loader, epoch = runner.step, runner.loader("train"), 0
    runner.model.train()

    def run(seconds: float) -> int:
        nonlocal epoch
        steps, end = 0, perf_counter() + seconds
        while True:
            for index, batch in enumerate(loader.batches(epoch)):
                step(batch, index, len(loader))
                steps += 1
                if perf_counter() > end:
                    return steps * width
            epoch += 1

    return run


def _by_hand(model: str) -> Callable[[float], int]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from trainyard.runner import Runner

    runner = Runner.from_cfg(_config(model, 0))
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


def _work(pipe: Connection, core: int) -> None:
    """One core: makes a case ready, steps when told to, and says how far it came."""
    os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    while True:
        case = pipe.recv()
        if case is None:
            return
        model, name, seconds = case
        run = _by_hand(model) if name == HAND else _runner(model, 1 if name == SOLO else int(name))
        run(seconds / 4)
        pipe.send("ready")
        pipe.recv()
        begin = perf_counter()
        steps = run(seconds)
        pipe.send(steps / (perf_counter() - begin))


def _measure(pipes: list[Connection], model: str, name: str, seconds: float) -> float:
    for pipe in pipes:
        pipe.send((model, name, seconds))
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("go")
    return sum(float(pipe.recv()) for pipe in pipes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--widths", nargs="+", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each case and round")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in cores]
    workers = [
        context.Process(target=_work, args=(end, core), daemon=True) for (_, end), core in zip(ends, cores, strict=True)
    ]
    for worker in workers:
        worker.start()
    pipes = [pipe for pipe, _ in ends]
    for _, end in ends:
        end.close()  # so that a worker that ends is noticed
    figures: dict[str, dict[str, list[float]]] = {}
    for model in options.models:
        cases = [HAND, SOLO, *(str(width) for width in options.widths)]
        found = figures[model] = {case: list[float]() for case in cases}
        for _ in range(options.rounds):
            for case in random.sample(cases, len(cases)):
                found[case].append(_measure(pipes, model, case, options.seconds))
    for pipe in pipes:
        pipe.send(None)
    print(f"{len(cores)} cores, one process with one thread on each; {options.rounds} rounds of {options.seconds:g} s")
    for model, found in figures.items():
        print(f"\n{model:12}{'member-steps/s':>16}{'µs each':>10}{'to alone':>10}  (min to max){'to by hand':>14}")
        for case, rates in found.items():
            ratios = [rate / base for rate, base in zip(rates, found[SOLO], strict=True)]
            to_hand = statistics.median(rate / base for rate, base in zip(rates, found[HAND], strict=True))
            rate = statistics.median(rates)
            label = case if case in (HAND, SOLO) else f"K = {case}"
            print(
                f"{label:12}{rate:>16,.0f}{1e6 / rate:>10.1f}{statistics.median(ratios):>10.2f}"
                f"  ({min(ratios):.2f} to {max(ratios):.2f}){to_hand:>14.2f}"
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
