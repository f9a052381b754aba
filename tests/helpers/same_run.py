"""Comparison of two directories of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.runner import checkpoint
from trainyard.track import read


def points(folder: Path) -> dict[tuple[str, int], float]:
    """The numbers that a run has journalled, by name and step, without those of time."""
    return {
        (key, record["step"]): value
        for record, _ in read(folder / "metrics.jsonl")
        for key, value in record.get("values", {}).items()
        if "time" not in key
    }


def alike(ours: Path, theirs: Path) -> None:
    """Two directories tell the same story."""

    def story(folder: Path) -> list[Any]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            values = line.get("values", {})
            line["values"] = {key: float(value) if value == "NaN" else value for key, value in values.items()}
        return [{key: value for key, value in line.items() if key != "time"} for line in lines]

    assert [_shape(line) for line in story(ours)] == [_shape(line) for line in story(theirs)]
    for mine, its in zip(story(ours), story(theirs), strict=True):
        assert mine["values"] == pytest.approx(its["values"], rel=1e-7, nan_ok=True)
    names = {path.name for path in (theirs / "checkpoints").glob("*.pt")}
    assert {path.name for path in (ours / "checkpoints").glob("*.pt")} == names
    for name in names:
        mine, its = (checkpoint.load(folder / "checkpoints" / name) for folder in (ours, theirs))
        for part in ("model", "eval_model"):
            for key, tensor in its[part].items():
                torch.testing.assert_close(mine[part][key], tensor, rtol=1e-7, atol=1e-9)


def _shape(line: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(value) if key == "values" else value for key, value in line.items() if key != "value"}
