"""Side of Syne Tune: its schedulers in its simulator."""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import side
from replay import WORKERS, Clock, Piece
from syne_tune import Tuner
from syne_tune.backend.simulator_backend.simulator_callback import SimulatorCallback
from syne_tune.blackbox_repository.blackbox import Blackbox
from syne_tune.blackbox_repository.simulated_tabular_backend import UserBlackboxBackend
from syne_tune.config_space import choice, loguniform, randint
from syne_tune.config_space import lograndint as log_integers
from syne_tune.constants import ST_TUNER_TIME
from syne_tune.optimizer import baselines
from table import CHOICES, INTEGERS, Problem

VALUE, SECONDS, EPOCH = "accuracy", "elapsed", "epoch"
SCALE = 1000.0
"""Simulated seconds for one of the table: Syne Tune rounds up to a hundredth."""
SAMPLERS = ("TPE", "BORE", "REA")
"""Schedulers that train each trial to its end."""


class _Table(Blackbox):  # type: ignore[misc,unused-ignore]
    """Blackbox of a problem."""

    def __init__(self, problem: Problem, space: dict[str, Any]) -> None:
        super().__init__(space, {EPOCH: randint(1, problem.epochs)}, [VALUE, SECONDS])
        self.problem = problem

    @property
    def fidelity_values(self) -> Any:
        return np.arange(1, self.problem.epochs + 1)

    def _objective_function(self, configuration: Any, fidelity: Any = None, seed: Any = None) -> Any:
        index = self.problem.index(configuration)
        curve = self.problem.values[index]
        times = self.fidelity_values * self.problem.seconds[index] * SCALE
        if fidelity is None:
            return np.stack([curve, times], axis=1)
        place = int(fidelity[EPOCH]) - 1
        return {VALUE: float(curve[place]), SECONDS: float(times[place])}


class _Pieces(SimulatorCallback):  # type: ignore[misc,unused-ignore]
    """Callback that keeps what was trained."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.clock = Clock(problem)

    def on_trial_result(self, trial: Any, status: str, result: dict[str, Any], decision: str) -> None:
        epoch, time = int(result[EPOCH]), result[ST_TUNER_TIME] / SCALE
        index = self.problem.index(trial.config)
        self.clock.add(Piece(trial.trial_id, index, epoch - 1, epoch, time))


def search(problem: Problem, seed: int, method: str) -> list[Piece]:
    """Replay a scheduler with its defaults."""
    logging.disable(logging.WARNING)
    space: dict[str, Any] = {}
    for each in problem.parameters:
        if each.kind == CHOICES:
            space[each.key] = choice(list(each.values))
        else:
            space[each.key] = (log_integers if each.kind == INTEGERS else loguniform)(each.low, each.high)
    halving = {} if method in SAMPLERS else {"time_attr": EPOCH, "max_t": problem.epochs}
    scheduler = getattr(baselines, method)(space, metric=VALUE, do_minimize=False, random_seed=seed, **halving)
    backend = UserBlackboxBackend(_Table(problem, space), elapsed_time_attr=SECONDS, seed=0)
    pieces = _Pieces(problem)
    with tempfile.TemporaryDirectory() as folder:
        backend.set_path(folder)
        tuner = Tuner(
            trial_backend=backend, scheduler=scheduler, stop_criterion=lambda status: pieces.clock.is_over,
            n_workers=WORKERS, sleep_time=0, callbacks=[pieces], results_update_interval=1e9, print_update_interval=1e9,
            save_tuner=False, trial_backend_path=folder,
        )  # fmt: skip
        tuner.tuner_path = Path(folder)
        tuner.run()
    return pieces.clock.pieces


METHODS = {
    "Syne Tune, ASHA": partial(search, method="ASHA"),
    "Syne Tune, BOHB": partial(search, method="BOHB"),
    **{f"Syne Tune, {name}": partial(search, method=name) for name in SAMPLERS},
}

if __name__ == "__main__":
    side.main(METHODS)
