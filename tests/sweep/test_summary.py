"""The sweep's own run says which job is the best."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trainyard.sweep.report.ranking import rank
from trainyard.sweep.report.rows import JobRow
from trainyard.sweep.summary import BestSoFar, data_sets, summary_tags
from trainyard.track import Journal, RunInfo

VALUES = st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=False), max_size=8)


def rows(tmp_path: Path, *objectives: float | None) -> list[JobRow]:
    found = []
    for num, value in enumerate(objectives):
        (tmp_path / str(num)).mkdir()
        RunInfo(f"job {num}", id=f"{num}" * 32).write(tmp_path / str(num))
        state = "failed" if value is None else "done"
        found.append(JobRow(num, {"model": f"a|{num}"}, state, value, 1.0, tmp_path / str(num)))
    return found


@given(VALUES, st.sampled_from(["maximize", "minimize"]))
def test_the_best_so_far_is_that_of_the_ranking(values: Any, direction: Any) -> None:
    best = BestSoFar(direction)
    for value in values:
        best.add(value)
    order = rank([JobRow(num, {}, "done", value, None, Path()) for num, value in enumerate(values)], direction)
    ranked = [row.objective for row in order if row.ranked]
    assert best.value == (ranked[0] if ranked else None)
    assert best.count == len([value for value in values if value is not None and not math.isnan(value)])


def test_the_winner_is_named_and_linked(tmp_path: Path) -> None:
    order = rank(rows(tmp_path, 0.5, 0.9, None), "maximize")
    tags = summary_tags(order, "val/accuracy", "maximize", "python train.py -m model=a,b", "multirun/1")
    note = tags.pop("mlflow.note.content")
    assert tags == {"winner.job": "#1", "winner.value": "0.9", "winner.model": "a|1", "winner.run": f"run:{'1' * 32}"}
    first, _, note = note.partition("\n\n")
    assert first == f"**Best: [#1](run:{'1' * 32})**, val/accuracy 0.9, with `model=a|1`"
    assert note.startswith("2 of 3 jobs are done.\n\n`python train.py -m model=a,b`\n\nin `multirun/1`\n")
    assert f"| 1 | [#1](run:{'1' * 32}) | a\\|1 | 0.9 | done |\n" in note
    assert note.endswith("| a\\|2 | - | failed |")


def test_the_winner_of_repeats_is_the_configuration_with_the_best_mean(tmp_path: Path) -> None:
    """Job 0 has the best objective, by the luck of its seed."""
    found = [
        replace(row, overrides={"model": model, "seed": seed})
        for row, model, seed in zip(rows(tmp_path, 0.9, 0.1, 0.6, 0.8), "aabb", "0101", strict=True)
    ]
    tags = summary_tags(rank(found, "maximize"), "val/accuracy", "maximize", "train", "here")
    note = tags.pop("mlflow.note.content")
    assert tags == {
        "winner.job": "#3",
        "winner.value": "0.8",
        "winner.model": "b",
        "winner.mean": "0.7",
        "winner.n": "2",
        "winner.run": f"run:{'3' * 32}",
    }
    assert note.startswith(
        "**Best configuration: `model=b`**, mean val/accuracy 0.7 ± 1.3 (95 %) over 2 jobs: [#2](run:2"
    )


def test_a_sweep_of_one_job(tmp_path: Path) -> None:
    tags = summary_tags(rank(rows(tmp_path, 0.5), "maximize"), "val/accuracy", "maximize", "train", "here")
    assert "\n\n1 of 1 job is done.\n\n" in tags["mlflow.note.content"]


def test_without_a_ranked_job_there_is_no_winner(tmp_path: Path) -> None:
    tags = summary_tags(rows(tmp_path, None, math.nan), None, "minimize", "train", "here")
    assert tags.keys() == {"mlflow.note.content"}


def test_data_sets_of_jobs_come_once(tmp_path: Path) -> None:
    for job, digest in (("0", "a"), ("1", "a"), ("2", "b")):
        (tmp_path / job).mkdir()
        with Journal(tmp_path / job) as journal:
            journal.status("RUNNING")
            inputs = {"digits/train": digest, "digits/val": "c"}.items()
            journal.inputs([{"name": name, "digest": value, "context": "x"} for name, value in inputs])
    found = data_sets([tmp_path / job for job in ("0", "1", "2", "missing")])
    assert [(each["name"], each["digest"]) for each in found] == [
        ("digits/train", "a"),
        ("digits/val", "c"),
        ("digits/train", "b"),
    ]
