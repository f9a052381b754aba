"""What differs between the recorded settings of a sweep and those of a command."""

from __future__ import annotations

from typing import Any

import pytest

from trainyard.sweep.identity import differences

ASHA = {"_target_": "trainyard.sweep.proposers.pruners.Asha", "first": 1, "eta": 3}
SEARCH = {"sampler": {"_target_": "optuna.samplers.TPESampler"}, "order": "any", "warm_start": []}
OWN = {"order": "any", "pruner": None, "space": ["optim.lr=interval(0,1)"], "versions": {"optuna": "4.9.0"}}


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (OWN, {**OWN, "versions": {"optuna": "5.0.0"}}, []),
        (OWN, {**OWN, "order": "job"}, ["order: any (now job)"]),
        (
            OWN,
            {**OWN, "pruner": ASHA, "space": ["optim.lr=interval(0,2)"]},
            [
                "pruner: not set (now asha)",
                'space: ["optim.lr=interval(0,1)"] (now ["optim.lr=interval(0,2)"])',
            ],
        ),
        ({**OWN, "pruner": ASHA}, {**OWN, "pruner": {**ASHA, "eta": 4}}, ["pruner.eta: 3 (now 4)"]),
        (OWN, {**OWN, "enqueue": [{"optim.lr": 1e-3}] * 99}, ["enqueue: not set (now [{"]),
        ({}, OWN, ["a grid without a pruner (now a grid with a pruner)"]),
        (SEARCH, {}, ["hydra/sweeper=search (now a grid without a pruner)"]),
        (SEARCH, {**SEARCH, "learn_from": "rung"}, ["learn_from: all (now rung)"]),
        (
            {**SEARCH, "warm_start": [[{"a": 1}, 0.5]], "warm_start_from": "multirun/grid"},
            SEARCH,
            ["warm_start: multirun/grid (now not set)"],
        ),
    ],
)
def test_each_difference_is_told_once(before: Any, now: Any, told: list[str]) -> None:
    found = differences(before, now)
    assert len(found) == len(told)
    assert all(own.startswith(each) for own, each in zip(found, told, strict=True)), found
    assert all(len(own) < 300 for own in found)
