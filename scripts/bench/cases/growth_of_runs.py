"""Time of a tracked run against the number of runs in its MLflow experiment: a complete process, from the shell.

The run is `python train.py model=mlp optim=adam loop.max_epochs=2`. It ends when its journal, its checkpoints and its
model are uploaded to a SQLite file. The other runs are copies of such a run's database rows, without its logged models.

**Result:** the time does not grow.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from time import time

from environment import ROOT
from measure import Comparison, Session, Table, several_figures

from cases import startup

# A hook of the user's: it records the time after the first step.
HOOK = """
import time
from pathlib import Path
from trainyard.hooks import Hook

class Noted(Hook):
    priority = "HIGHEST"

    def __init__(self, path):
        self.path = Path(path)

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if not self.path.exists():
            self.path.write_text(repr(time.time()))
"""
OF_RUNS = {"params": "run_uuid", "metrics": "run_uuid", "latest_metrics": "run_uuid", "tags": "run_uuid"}
"""Tables of MLflow whose rows belong to a run, with the column that names it."""


def tables(session: Session) -> Iterator[Table]:
    startup.written(session.folder, "noted.py", HOOK)
    first = session.folder / "1.db"
    train(session.folder, first)
    names = {}
    for count in (1, 100) if session.quick else (1, 1_000, 10_000):
        database = session.folder / f"{count}.db"
        if count > 1:
            shutil.copy(first, database)
            copy_runs(database, count - 1)
        names[f"{count:,} run{'s' * (count > 1)}"] = database
    figures, failed = several_figures(
        session.fewer(), {name: partial(train, session.folder, database) for name, database in names.items()}
    )
    few, *more = names
    comparisons = [Comparison(name, few) for name in more]
    for figure, title in (
        ("first step", "Start to the first step against runs in MLflow"),
        ("end", "Start to the end of the upload against runs in MLflow"),
    ):
        yield Table(title, "s", figures.get(figure, {}), failed, comparisons)


def train(folder: Path, database: Path) -> Mapping[str, float]:
    """Train and upload one run; return the seconds to its first step, and to the end of its process."""
    before = finished(database)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        moment = Path(name, "moment")
        overrides = [
            *("model=mlp", "optim=adam", "loop.max_epochs=2", f"hydra.run.dir={name}/run"),
            *(f"tracker.uri=sqlite:///{database}", "tracker.wait=600"),
            *("+hook.noted._target_=noted.Noted", f"+hook.noted.path={moment}"),
        ]
        begin = time()
        first = startup.first_step(folder, ROOT / "train.py", *overrides, note=moment)
        end = time() - begin
    if finished(database) != before + 1:
        raise RuntimeError("the run is not FINISHED in MLflow")
    return {"first step": first, "end": end}


def finished(database: Path) -> int:
    """Return how many runs have ended in MLflow."""
    if not database.exists():
        return 0
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("select count(*) from runs where status = 'FINISHED'").fetchone()[0])


def copy_runs(database: Path, count: int) -> None:
    """Add copies of the only run of a database of MLflow."""
    with closing(sqlite3.connect(database)) as connection, connection:
        ((run,),) = connection.execute("select run_uuid from runs")
        connection.execute("create temporary table copies (id text)")
        connection.executemany("insert into copies values (?)", ((f"{number:032x}",) for number in range(count)))
        for table, column in {"runs": "run_uuid", **OF_RUNS}.items():
            insert(connection, table, {column: "copies.id"}, column, run)
        own = {"destination_id": "copies.id", "input_uuid": "copies.id || input_uuid"}
        insert(connection, "inputs", own, "destination_id", run)


def insert(connection: sqlite3.Connection, table: str, replaced: Mapping[str, str], column: str, run: str) -> None:
    """Copy the rows of a run for each of the `copies`, with some columns `replaced` by an expression."""
    columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
    selected = ", ".join(replaced.get(name, f"{table}.{name}") for name in columns)
    where = f"from {table}, copies where {table}.{column} = ?"
    connection.execute(f"insert into {table} ({', '.join(columns)}) select {selected} {where}", (run,))
