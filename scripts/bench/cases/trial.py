"""Probe of stacks (`hydra.launcher.fuse=auto`): the speed of the chosen stacks compared with single runs, and its cost.

The probe measures stacks in a new process with one thread, for K jobs on the digits data (batch size 64, Adam, 20
epochs, no hooks). The jobs then train in the chosen stacks, and one by one. The ratio is 1 by definition if the probe
chooses no stacks. All times are CPU times.

**Result:** the chosen stacks are faster than single runs. The cost matters only in sweeps of short jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import process_time
from typing import Any

from measure import Comparison, Session, Table, Turn, take_turns

from cases import fused

EPOCHS = 20
JOBS = 256
MODELS = ("MLP", "CNN")


def tables(session: Session) -> Iterator[Table]:
    epochs, jobs = session.size(EPOCHS, 1), session.size(JOBS, 4)
    for model in MODELS:
        widths = [2, 4] if session.quick else [2, 4, 8, 16, 32]
        sides = {f"K = {width}": partial(_chosen, model, width, epochs) for width in widths}
        values, failed = take_turns(session.fewer(), sides, turns=1, warm=False)
        comparisons = [Comparison(name, None, 1.02, "value") for name in sides]
        unit = "fraction of the time one by one"
        yield Table(f"Probe: {model} in the chosen stacks", unit, values, failed, comparisons)
    sides = {
        f"{model}, {jobs} jobs, {length} epochs": partial(_cost, model, jobs, length)
        for model in MODELS
        for length in (epochs, 10 * epochs)
    }
    values, failed = take_turns(session.fewer(), sides, turns=1, warm=False)
    comparisons = [Comparison(name, None, 0.02, "value") for name in sides]
    yield Table("Probe: its cost", "fraction of the sweep's CPU time", values, failed, comparisons)


@contextmanager
def _chosen(model: str, members: int, epochs: int) -> Iterator[Turn]:
    """Yield a function that trains jobs in the chosen stacks, and returns the time as a fraction of that one by one."""
    configs = _configs(model, members, epochs)
    width = _tried(configs, members)[0].width

    def turn() -> float:
        if width < 2:
            return 1.0
        groups = [configs[first : first + width] for first in range(0, members, width)]
        return sum(map(_trained, groups)) / sum(_trained([config]) for config in configs)

    yield turn


@contextmanager
def _cost(model: str, jobs: int, epochs: int) -> Iterator[Turn]:
    """Yield a function that returns the time of the probe as a fraction of that of all jobs and the probe."""

    def turn() -> float:
        from trainyard.fused.train import widest

        fit, seconds = _tried(_configs(model, min(jobs, widest("cpu")), epochs), jobs)
        return float(seconds / (seconds + jobs * fit.seconds))

    yield turn


def _tried(configs: list[dict[str, Any]], jobs: int) -> tuple[Any, float]:
    import torch

    from trainyard.fused.probe import probe

    torch.set_num_threads(1)
    begin = process_time()
    fit = probe(configs, jobs)
    return fit, process_time() - begin


def _trained(configs: list[dict[str, Any]]) -> float:
    """Train jobs as one program, one job alone; return the CPU seconds."""
    from trainyard.fused.runner import FusedRunner
    from trainyard.runner import Runner

    begin = process_time()
    runner = FusedRunner(configs) if len(configs) > 1 else Runner.from_cfg(configs[0])
    runner.train()
    return process_time() - begin


def _configs(model: str, members: int, epochs: int) -> list[dict[str, Any]]:
    loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": epochs}
    return [fused.config(model, member) | {"loop": loop} for member in range(members)]
