"""Outcome of a run: what has to be equal between one that was disturbed and one that was not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor
from trials import FaultError

from trainyard.runner import checkpoint
from trainyard.track import read

LEAST = 1e-3
"""Size below which a difference of numbers is not taken as relative to them."""


def last(directory: Path) -> dict[str, Any]:
    """Return the last checkpoint of a run.

    Raises:
        FaultError: there is no whole one.
    """
    found = checkpoint.newest(directory / "checkpoints")
    if found is None:
        raise FaultError(f"{directory} has no whole checkpoint")
    return found[1]


def of(directory: Path) -> dict[str, Any]:
    """Return the last checkpoint, the best weights and the journal of a run that has ended, without clock times.

    Raises:
        FaultError: a point is in the journal twice, or there is no whole checkpoint.
    """
    folder = directory / "checkpoints"
    names = checkpoint.read_last(folder)
    if not names:
        raise FaultError(f"{directory} has no checkpoint")
    state = checkpoint.load(folder / names[-1])
    state["hooks"].pop("timer", None)
    state["member"]["metrics"] = {key: value for key, value in state["member"]["metrics"].items() if "time" not in key}
    best = folder / "best.pt"
    return {
        "checkpoint": names[-1],  # an interruption leaves further ones before it
        "state": state,
        "points": points(directory),
        "best": checkpoint.load(best)["model"] if best.exists() else None,
    }


def points(directory: Path) -> dict[str, Any]:
    """Return the epoch and the value of each metric at each step in a journal, without clock times.

    Raises:
        FaultError: one is there twice.
    """
    found: dict[str, Any] = {}
    for record, _ in read(directory / "metrics.jsonl"):
        values = {record["name"]: record["value"]} if record["kind"] == "array" else record.get("values", {})
        for name, value in values.items():
            if "time" not in name:
                key = f"{name} at step {record['step']}"
                if key in found:
                    raise FaultError(f"{directory} has {key} twice in its journal")
                found[key] = (record.get("epoch"), value)
    return found


def check_equal(found: Any, expected: Any, where: str, bound: float = 0.0) -> None:
    """Check that two nests of tensors and plain values are the same.

    Args:
        found: what is checked.
        expected: what it is compared with.
        where: a name for both, in the message.
        bound: the relative difference that numbers may have; 0 for the same bits.

    Raises:
        FaultError: they differ; the message names the first place.
    """
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        if found.dtype != expected.dtype or found.shape != expected.shape:
            raise FaultError(
                f"{where}: {found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
            )
        _check_numbers(found, expected, where, bound)
    elif isinstance(expected, dict) and isinstance(found, dict):
        only = [f"{key!r} only in one" for key in found.keys() ^ expected.keys()]
        if only:
            raise FaultError(f"{where}: {', '.join(sorted(only)[:5])}")
        for key in expected:
            check_equal(found[key], expected[key], f"{where}: {key}", bound)
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(found) != len(expected):
            raise FaultError(f"{where}: {len(found)} entries, expected {len(expected)}")
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            check_equal(one, other, f"{where}[{index}]", bound)
    elif isinstance(expected, float) and isinstance(found, float):
        same = found == expected or (math.isnan(found) and math.isnan(expected))
        if not same and not math.isclose(found, expected, rel_tol=bound, abs_tol=bound):
            raise FaultError(f"{where}: {found!r}, expected {expected!r}")
    elif type(found) is not type(expected) or found != expected:
        raise FaultError(f"{where}: {found!r}, expected {expected!r}")


def _check_numbers(found: Tensor, expected: Tensor, where: str, bound: float) -> None:
    one, other = found.detach().double(), expected.detach().double()
    differences = (one - other).abs().masked_fill((one == other) | (one.isnan() & other.isnan()), 0.0)
    if not differences.numel() or not differences.any():
        return
    worst = float(differences.max())
    scale = float(other.abs().max().clamp(min=LEAST))
    if not worst <= bound * scale:
        raise FaultError(f"{where}: differs by {worst:.3g}, of {scale:.3g}; accepted: {bound * scale:.3g}")
