"""Searches over tables of real learning curves, replayed in simulated time with 8 workers.

The tables are made by `scripts/bench/curves.py`: MLPs on the rings and on the digits, and CNNs on the digits, each
configuration trained for 20 epochs with three seeds. A replay takes one trained seed; each side searches the same space
(learning rate, weight decay and width on logarithmic scales, batch size, optimizer), and a point has the curve of the
nearest configuration. All sides have their defaults but for the length of a training, and see each trial's objective
as its best epoch. What a decision takes is not counted. Regret is what the best value so far lacks to the best one in
the table, after equally many epochs of all workers together. Time is simulated: the seconds until a value of 99 % of
the best one. A figure is the mean over the seeds, and its interval is one of 95 %.

Optuna is its own loop of `ask`, `report` and `should_prune`; Ray Tune its ASHA scheduler, driven by hand; Syne Tune its
simulator; NePS its `AskAndTell`, where a configuration goes on from its checkpoint; Hydra's Optuna plugin its sweeper,
over a launcher that waits for each batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Comparison, Session, Table

BENCH = Path(__file__).resolve().parents[1]
SIDES = BENCH / "search"
FILE = BENCH / "data" / "curves.parquet"
sys.path.insert(0, str(SIDES))  # its modules are imported by the sides too, each in its own environment

SEEDS = 50
BUDGETS = (10, 20)  # whole trainings
OURS, PLUGIN = "trainyard, TPE + ASHA", "Hydra's Optuna plugin, TPE"


@dataclass(frozen=True)
class Side:
    """A way to search.

    Attributes:
        file: the module.
        method: its name there.
        environment: the environment; None for this interpreter.
    """

    file: str
    method: str
    environment: str | None = None


SIDE: Mapping[str, Side] = {
    OURS: Side("by_trainyard", "TPE + ASHA"),
    "trainyard, TPE + Hyperband": Side("by_trainyard", "TPE + Hyperband"),
    "trainyard, random + ASHA": Side("by_trainyard", "random + ASHA"),
    "Optuna, TPE + successive halving": Side("by_optuna", "Optuna, TPE + successive halving"),
    "Optuna, TPE + Hyperband": Side("by_optuna", "Optuna, TPE + Hyperband"),
    "Optuna, TPE + median": Side("by_optuna", "Optuna, TPE + median"),
    "Ray Tune, random + ASHA": Side("by_ray", "Ray Tune, random + ASHA", "ray"),
    "Ray Tune, OptunaSearch + ASHA": Side("by_ray", "Ray Tune, OptunaSearch + ASHA", "ray"),
    "Syne Tune, ASHA": Side("by_syne", "Syne Tune, ASHA", "syne"),
    "Syne Tune, BOHB": Side("by_syne", "Syne Tune, BOHB", "syne"),
    "NePS, ASHA": Side("by_neps", "NePS, ASHA", "neps"),
    PLUGIN: Side("by_hydra", PLUGIN, "hydra"),
}


def tables(session: Session) -> Iterator[Table]:
    from replay import WORKERS, Course, Piece
    from table import problems

    seeds = session.size(SEEDS, 3)
    for name in _names():
        own = problems(FILE, name)
        files = []
        for place, problem in enumerate(own):
            files.append(session.folder / f"{name}{place}.npz")
            problem.save(files[-1])
        regrets: list[dict[str, list[float]]] = [{} for _ in BUDGETS]
        times: dict[str, list[float]] = {}
        twice: dict[str, list[float]] = {}
        failed: dict[str, str] = {}
        for side, how in SIDE.items():
            session.say(f"{name}: {side}")
            try:
                found = replays(how, files, session.folder / f"{name}-{side}.jsonl", seeds)
            except Exception as error:
                failed[side] = str(error)
                session.say(f"{side} failed: {error}")
                continue
            courses = [
                (own[seed % len(own)], Course.of(own[seed % len(own)], [Piece(*piece) for piece in pieces]))
                for seed, pieces in sorted(found.items())
            ]
            for place, budget in enumerate(BUDGETS):
                regrets[place][side] = [100 * course.regret(each, budget * each.epochs) for each, course in courses]
            times[side] = [course.time_to_near(each) for each, course in courses]
            twice[side] = [float(course.twice) for _, course in courses]
        for budget, values in zip(BUDGETS, regrets, strict=True):
            yield Table(
                f"Search on {name}: regret after the epochs of {budget} whole trainings",
                "points of accuracy",
                values,
                failed,
                [
                    Comparison(OURS, side, None if side.startswith("trainyard") else 0.0, "difference")
                    for side in SIDE
                    if side != OURS
                ],
                mean=True,
            )
        yield Table(
            f"Search on {name}: time to 99 % of the best known value, {WORKERS} workers",
            "simulated s",
            times,
            failed,
            [
                Comparison(OURS, side, None if side.startswith("trainyard") else 1 / 3 if side == PLUGIN else 0.8)
                for side in SIDE
                if side != OURS
            ],
            mean=True,
        )
        yield Table(
            f"Search on {name}: epochs trained twice",
            "epochs a search",
            twice,
            failed,
            [Comparison(OURS, reach=0.0, kind="value")],
            mean=True,
        )


def _names() -> Sequence[str]:
    import pyarrow.parquet as pq

    return sorted(set(pq.read_table(FILE, columns=["table"]).column("table").to_pylist()), reverse=True)


def replays(side: Side, files: Sequence[Path], out: Path, seeds: int) -> dict[int, list[Any]]:
    """Return the pieces of each seed, replayed in the side's environment.

    Raises:
        Exception: the side cannot be installed, or a replay failed.
    """
    import side_environments

    python = sys.executable
    if side.environment is not None:
        python = str(side_environments.python(side.environment, BENCH.parents[1]))
    command = [python, str(SIDES / f"{side.file}.py"), side.method, *map(str, files), str(out), "--seeds", f"0:{seeds}"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or side.environment is None}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=clean | {"OMP_NUM_THREADS": "1"}, cwd=out.parent
    )
    if done.returncode:
        raise RuntimeError(" ".join((done.stderr.strip().splitlines() or ["no message"])[-1].split())[:200])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {line["seed"]: line["pieces"] for line in lines}
