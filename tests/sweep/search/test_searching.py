"""A search as a user starts it: killed and continued, it ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, run
from same_run import points
from waiting import FOREVER, LIMIT, until

from trainyard.runner import checkpoint
from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).parents[3]
SMALL = [
    "tracker=none", "hydra.launcher.threads_per_job=1", "hydra.launcher.max_jobs=2", "loop.max_epochs=4",
    "data.batch_size=256",
]  # fmt: skip
SEARCH = [
    "-m", "hydra/sweeper=search", "hydra/sweeper/pruner=asha", "hydra.sweeper.order=job", "hydra.sweeper.n_trials=5",
    "hydra.sweeper.pruner.eta=2", "hydra.sweeper.sampler.n_startup_trials=2", "optim.lr=tag(log,interval(1e-4,1e-1))",
    "optim.weight_decay=tag(log,interval(1e-6,1e-2))", "model.hidden=[8],[16],[32]",
    "hydra.sweeper.constraints=['model/parameters <= 1e5']",
]  # fmt: skip


def command(*more: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *SMALL, *more]


def environment() -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    return clean | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "150"}


def records(folder: Path) -> list[dict[str, Any]]:
    file = folder / "manifest.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def decisions(folder: Path) -> list[Any]:
    found: list[Any] = []
    for record in records(folder):
        if record["kind"] == "job":
            found.append((record["num"], record["overrides"], record["rungs"], record["note"]))
        elif record["kind"] == "queued" and record["why"] == "promoted":
            found.append(record["units"])
    return found


HELD = f"""
import os
import time
from pathlib import Path

from trainyard.hooks import Hook


class Held(Hook):
    # Where HELD says so, a job stays before its first epoch, or before one after a rung, until it is killed.
    def before_train_epoch(self, runner):
        how = os.environ.get("HELD")
        if how == "promoted" and runner.epoch > 0 or how == "begun" and runner.work_dir.name == "2":
            Path(os.environ["HELD_FILE"]).touch()
            time.sleep({FOREVER})
"""


def test_killed_twice_it_ends_with_the_suggestions_promotions_and_bits_of_the_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    clean = environment()
    clean["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    search = command(*SEARCH, "+hook.held._target_=held.Held")
    done = run([*search, "hydra.sweep.dir=undisturbed"], LIMIT, cwd=tmp_path, env=clean)
    assert done.returncode == 0, done.stderr
    expected = tmp_path / "undisturbed"
    for how in ("begun", "promoted"):  # it cannot come to its end before it is killed, as such a job does not
        held = clean | {"HELD": how, "HELD_FILE": str(tmp_path / how)}
        process = Forked(
            [*search, "hydra.sweep.dir=killed"], cwd=tmp_path, env=held, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        until((tmp_path / how).exists, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done = run([*search, "hydra.sweep.dir=killed"], LIMIT, cwd=tmp_path, env=clean)
    assert done.returncode == 0, done.stderr

    found = tmp_path / "killed"
    assert decisions(found) == decisions(expected)
    assert any(isinstance(each, list) for each in decisions(found)), "some were promoted"
    reported = {record["num"]: record["metrics"] for record in records(found) if record["kind"] == "report"}
    entries = [Manifest.open(folder).entries for folder in (found, expected)]
    assert entries[0].keys() == entries[1].keys() == set(range(5))
    for num, entry in entries[0].items():
        other = entries[1][num]
        assert (entry.state, entry.objective, entry.error) == (other.state, other.objective, other.error)
        (hidden,) = [line.partition("=")[2] for line in entry.overrides if line.startswith("model.hidden=")]
        parameters = {"[8]": 610.0, "[16]": 1210.0, "[32]": 2410.0}
        assert reported[num] == {"model/parameters": parameters[hidden]}, "a constraint is known at the rungs"
        ours, theirs = found / str(num), expected / str(num)
        assert points(ours) == points(theirs)
        names = {file.name for file in (ours / "checkpoints").iterdir()}
        assert names == ({"best.pt"} if entry.state == "pruned" else names | {"epoch_0004.pt"})
        for name in ["best.pt", *(["epoch_0004.pt"] if entry.state == "done" else [])]:
            mine, its = (checkpoint.load(folder / "checkpoints" / name) for folder in (ours, theirs))
            assert mine["model"].keys() == its["model"].keys()
            assert all(torch.equal(mine["model"][key], tensor) for key, tensor in its["model"].items()), (num, name)
    assert Counter(entry.state for entry in entries[0].values()).keys() == {"done", "pruned"}

    # Another search is refused there, and says in what it differs.
    another = [*search, "hydra.sweep.dir=killed", "hydra/sweeper/sampler=random"]
    refused = run([line for line in another if "n_startup" not in line], LIMIT, cwd=tmp_path, env=clean)
    assert refused.returncode == 2
    assert "killed was started with sampler: tpe (now random)." in refused.stderr
    assert "space" not in refused.stderr


def test_a_pruned_job_of_a_grid_is_finished_in_mlflow_with_its_rung(tmp_path: Path) -> None:
    grid = ["-m", "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=0.3", "optim.lr=1e-6,3e-2"]
    grid += ["tracker=mlflow", f"tracker.wait={LIMIT}", "hydra.launcher.fuse=off", "hydra.sweep.dir=g"]
    done = run(command(*grid), LIMIT, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr
    assert {num: entry.state for num, entry in Manifest.open(tmp_path / "g").entries.items()} == {
        0: "pruned",
        1: "done",
    }
    assert {file.name for file in (tmp_path / "g/0/checkpoints").iterdir()} == {"best.pt"}
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        states = dict(store.execute("SELECT name, status FROM runs").fetchall())
        found = (
            "SELECT r.name, t.key, t.value FROM tags t JOIN runs r USING (run_uuid) WHERE t.key IN ('pruned', 'rung')"
        )
        tags = {(name, key): value for name, key, value in store.execute(found)}
    assert states["optim.lr=1e-06"] == states["optim.lr=0.03"] == "FINISHED"
    reports = [record["at"] for record in records(tmp_path / "g") if record["kind"] == "report" and record["num"] == 0]
    assert {name: value for (name, key), value in tags.items() if key == "pruned"} == {"optim.lr=1e-06": "True"}
    assert tags["optim.lr=1e-06", "rung"] == str(max(reports))


OTHER = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    if cfg.how == "fails":
        raise ValueError("no")
    return None if cfg.how == "nothing" else float(cfg.x)

main()
"""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["+how=nothing", "hydra.launcher.max_jobs=1"], "#0 returned nothing, but a search needs one number"),
        (
            ["+how=well", "hydra/sweeper/pruner=median"],
            "hydra/sweeper/pruner: 'median' is invalid. Expected none, because this application cannot resume from a "
            "checkpoint.",
        ),
        (
            ["+how=well", "hydra/launcher=basic"],
            "Expected local, slurm or ray, because hydra/sweeper=search supports no other launcher",
        ),
        (["+how=fails", "hydra.launcher.max_jobs=1"], "5 of 5 jobs did not finish"),
    ],
)
def test_what_cannot_be_searched_is_told(tmp_path: Path, more: list[str], told: str) -> None:
    (tmp_path / "app.py").write_text(OTHER)
    line = ["app.py", "-m", "hydra/sweeper=search", "hydra/launcher=local", "+x=interval(0,1)", "hydra.sweep.dir=o"]
    ended = run([sys.executable, *line, *more], LIMIT, cwd=tmp_path, env=environment())
    assert ended.returncode == 1
    assert told in ended.stderr


def test_a_search_of_another_application_goes_on_where_it_was_and_tries_given_points_first(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(OTHER)
    line = ["app.py", "-m", "hydra/sweeper=search", "hydra/launcher=local", "+how=well", "+x=interval(0,1)"]
    line += ["hydra.sweeper.enqueue=[{x: 0.25}]", "hydra.sweep.dir=o", "hydra.sweeper.target=0.0"]
    for count in (2, 4):
        ended = run([sys.executable, *line, f"hydra.sweeper.n_trials={count}"], LIMIT, cwd=tmp_path, env=environment())
        assert ended.returncode == 0, ended.stderr
        entries = Manifest.open(tmp_path / "o").entries
        assert entries.keys() == set(range(count)), "numbered without gaps"
        assert entries[0].objective == 0.25
        assert {entry.state for entry in entries.values()} == {"done"}


SEVERAL = [
    "-m", "hydra/sweeper=search", "hydra.sweeper.objective=[val/accuracy,model/parameters]",
    "hydra.sweeper.direction=[maximize,minimize]", "hydra.sweeper.n_trials=4", "hydra.sweeper.together=2",
    "optim.lr=tag(log,interval(1e-3,1e-1))", "hydra.sweep.dir=s",
]  # fmt: skip


def test_jobs_return_each_objective_at_their_best_checkpoint_alone_and_stacked(tmp_path: Path) -> None:
    more = ["model.hidden=[8],[16]", "hydra.sweeper.constraints=['test/loss <= 10']", "hydra.launcher.max_jobs=1"]
    done = run([*command(*SEVERAL), *more], LIMIT, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr
    entries = Manifest.open(tmp_path / "s").entries
    for num, entry in entries.items():
        found = points(tmp_path / "s" / str(num))
        (best,) = [step for key, step in found if key == "best/val/accuracy"]
        hidden = 8 if "model.hidden=[8]" in entry.overrides else 16
        (tested,) = [value for (key, _), value in found.items() if key == "test/loss"]
        parameters = (64 + 1) * hidden + (hidden + 1) * 10
        assert entry.objective == {
            "val/accuracy": found["val/accuracy", best], "model/parameters": parameters, "test/loss": tested,
        }  # fmt: skip
    assert "val/accuracy   model/parameters   test/loss" in done.stdout
    assert "front" in done.stdout


def test_a_metric_that_jobs_do_not_have_is_refused_before_any_starts(tmp_path: Path) -> None:
    wrong = [line.replace("model/parameters", "val/f1") for line in SEVERAL]
    ended = run([*command(*wrong)], LIMIT, cwd=tmp_path, env=environment())
    assert ended.returncode == 2
    assert "Nothing was started." in ended.stderr
    assert "hydra.sweeper.objective: No metric named 'val/f1'." in ended.stderr
    assert "These jobs compute val/accuracy" in ended.stderr
    assert not (tmp_path / "s").exists()


REFUSED = ["-m", "loop.max_epochs=1", "model.hidden=[8]", "hydra.sweep.dir=s"]
"""A sweep over `optim.lr`, which must not be negative."""


def test_a_search_continues_beside_trials_that_a_part_refuses(tmp_path: Path) -> None:
    """Also when it is continued: such trials are recorded, and fail again."""
    own = [*REFUSED, "hydra/sweeper=search", "hydra.sweeper.sampler.seed=4", "optim.lr=interval(-0.1,0.1)"]
    first = run([*command(*own), "hydra.sweeper.n_trials=3"], LIMIT, cwd=tmp_path, env=environment())
    assert first.returncode == 1, first.stderr
    again = run([*command(*own), "hydra.sweeper.n_trials=5"], LIMIT, cwd=tmp_path, env=environment())
    assert again.returncode == 1, again.stderr
    entries = Manifest.open(tmp_path / "s").entries
    rates = {num: float(entry.overrides[-1].partition("=")[2]) for num, entry in entries.items()}
    assert len(rates) == 5
    assert rates[0] < 0 < rates[1]
    assert {num: entry.state for num, entry in entries.items()} == {
        num: "failed" if rate < 0 else "done" for num, rate in rates.items()
    }


def test_a_search_whose_first_trials_are_all_refused_does_not_start(tmp_path: Path) -> None:
    own = [*REFUSED, "hydra/sweeper=search", "hydra.sweeper.n_trials=3", "optim.lr=interval(-0.1,-0.05)"]
    ended = run(command(*own), LIMIT, cwd=tmp_path, env=environment())
    assert ended.returncode == 2
    assert ended.stderr.startswith("Nothing was started.")
    assert "in 1 of 2 jobs, first in #1" in ended.stderr
    assert not (tmp_path / "s").exists()


def test_all_jobs_of_a_grid_with_a_pruner_are_checked_before_the_first_one_starts(tmp_path: Path) -> None:
    own = [*REFUSED, "hydra/sweeper/pruner=asha", "optim.lr=0.1,0.01,0.02,-1"]
    ended = run(command(*own), LIMIT, cwd=tmp_path, env=environment())
    assert ended.returncode == 2
    assert "in 1 of 4 jobs, first in #3: optim.lr=-1" in ended.stderr
    assert not (tmp_path / "s").exists()
    own[-1] = "optim.lr=0.1,0.01,0.02"
    done = run(command(*own), LIMIT, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr
    assert len(Manifest.open(tmp_path / "s").entries) == 3
