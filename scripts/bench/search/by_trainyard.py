"""Side of this project: `hydra/sweeper=search` as it is configured, in simulated time."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import side
from replay import WORKERS, Clock, Piece
from table import Problem

CONF = Path(__file__).resolve().parents[3] / "conf"
NO_END = 100_000  # trials: the clock ends a replay


def search(problem: Problem, seed: int, options: tuple[str, ...]) -> list[Piece]:
    """Replay a search.

    Args:
        problem: the problem.
        seed: the sampler's.
        options: overrides of the command line.
    """
    from trainyard.sweep.proposers.search_settings import SearchSettings
    from trainyard.sweep.simulation import SimulatedJob, SimulatedSweep

    config, loader = _composed(options, problem.epochs)
    kept = {key: value for key, value in config.hydra.sweeper.items() if not key.startswith("_")}
    kept["sampler"] = {**kept["sampler"], "seed": seed}
    settings = SearchSettings.from_config(kept, config)
    space = [parameter.override for parameter in problem.parameters]
    indices: dict[int, int] = {}
    reached: dict[int, int] = {}
    clock, told = Clock(problem), 0

    def job(num: int, overrides: tuple[str, ...]) -> SimulatedJob:
        point: dict[str, Any] = dict(line.split("=", 1) for line in overrides)
        indices[num] = index = problem.index(point)
        return SimulatedJob(problem.curve(index), float(problem.seconds[index]), problem.whole(index))

    sweep = SimulatedSweep(lambda: settings.proposer(space, loader, config), job, WORKERS)

    def is_over() -> bool:
        nonlocal told
        for time, num, epoch, _ in sweep.reports[told:]:
            clock.add(Piece(num, indices[num], reached.get(num, 0), epoch, time))
            reached[num] = epoch
        told = len(sweep.reports)
        return clock.is_over

    sweep.run(is_over)
    return clock.pieces


@cache
def _composed(options: tuple[str, ...], epochs: int) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from trainyard.config.hydra_versions import VERSION_BASE

    given = [
        "hydra/sweeper=search", f"hydra.sweeper.n_trials={NO_END}", f"loop.max_epochs={epochs}", "direction=maximize"
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        config = compose("train", overrides=[*given, *options], return_hydra_config=True)
        return config, GlobalHydra.instance().config_loader()


def _with(*options: str) -> side.Method:
    return partial(search, options=options)


METHODS = {
    "TPE + ASHA": _with("hydra/sweeper/pruner=asha"),
    "TPE + ASHA, learn_from=all": _with("hydra/sweeper/pruner=asha", "hydra.sweeper.learn_from=all"),
    "TPE + Hyperband": _with("hydra/sweeper/pruner=hyperband"),
    "random + ASHA": _with("hydra/sweeper/sampler=random", "hydra/sweeper/pruner=asha"),
    "TPE": _with(),
    "random": _with("hydra/sweeper/sampler=random"),
}

if __name__ == "__main__":
    side.main(METHODS)
