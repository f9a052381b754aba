"""Side of Hydra's Optuna plugin: its own sweeper, whose launcher trains batches on simulated workers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import optuna
import side
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import OmegaConf
from replay import WORKERS, Clock, Piece
from table import Problem


class _Enough(Exception):  # noqa: N818 - the plugin has no other way to end early
    """The replay has gone on long enough."""


class _Launcher:
    """Launcher that trains a batch, each job to its end on a worker of its own."""

    def __init__(self, problem: Problem) -> None:
        self.clock = Clock(problem)
        self._problem = problem
        self._now = 0.0

    def launch(self, overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        problem = self._problem
        indices = [problem.index(dict(line.split("=", 1) for line in own)) for own in overrides]
        ends = [self._now + problem.epochs * float(problem.seconds[index]) for index in indices]
        for place, (index, end) in enumerate(zip(indices, ends, strict=True)):
            self.clock.add(Piece(initial_job_idx + place, index, 0, problem.epochs, end))
        self._now = max(ends)
        if self.clock.is_over:
            raise _Enough
        return [SimpleNamespace(return_value=problem.whole(index)) for index in indices]


def search(problem: Problem, seed: int) -> list[Piece]:
    """Replay the plugin with its TPE, in batches of the number of workers."""
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweeper = OptunaSweeperImpl(
        optuna.samplers.TPESampler(seed=seed), "maximize", None, None, 2 * problem.most, WORKERS, 0.0, None, None, None
    )
    sweeper.launcher = launcher = _Launcher(problem)
    sweeper.hydra_context = SimpleNamespace()
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": tempfile.gettempdir()}}})
    try:
        sweeper.sweep([parameter.override for parameter in problem.parameters])
    except _Enough:
        return launcher.clock.pieces
    raise AssertionError("the plugin has ended by itself")


METHODS = {"Hydra's Optuna plugin, TPE": search}

if __name__ == "__main__":
    side.main(METHODS)
