"""Reproduction: whether a repeated run has the same curves and weights, and how code, data and environment differ."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.catalog.compare import Rows, compare
from trainyard.catalog.lineage import INHERITED, Segment
from trainyard.catalog.stored_run import Point, StoredRun
from trainyard.track.shipper.sanitize import clean_name

_OF_THE_MACHINE = re.compile(r"system/.*|(.*/)?(time|data_time|memory)")  # metrics that no run repeats
_TAGS = ("device", "gpu", "threads")
_FILE = re.compile(r"^diff --git a/(.+?) b/", re.MULTILINE)


@dataclass
class Reproduction:
    """Comparison of a run and its repetition.

    Attributes:
        metrics: the number of compared metrics.
        points: the number of compared points.
        curves: for each metric that differs, the first difference.
        weights: the differences in the weights; None if there are no checkpoints to compare.
        data: the digests of the data that differ, by name: original and repetition.
        code: the properties of the code that differ: original and repetition.
        files: the files of the code that differ.
        environment: versions, machine and device that differ: original and repetition.
        notes: other reasons why a run cannot be repeated exactly.
    """

    metrics: int = 0
    points: int = 0
    curves: dict[str, str] = field(default_factory=dict)
    weights: list[str] | None = None
    data: Rows = field(default_factory=dict)
    code: Rows = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    environment: Rows = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether curves and weights are bit-identical."""
        return not self.curves and not self.weights


def check(then: StoredRun, now: StoredRun, lineage: Sequence[Segment] = ()) -> Reproduction:
    """Compare a run with its repetition: all numbers except times and loads, and the tensors of their checkpoints.

    Args:
        then: the original run.
        now: its repetition.
        lineage: the segments that were trained again; empty for a run that trained alone. The part of the run before it
            continued from another job is neither repeated nor compared.
    """
    found = Reproduction()
    since = _inherited_at(now)
    series = {clean_name(name): points for name, points in now.history.series.items()} | now.history.series
    ended = then.state == "finished"
    if not ended:
        found.notes.append(
            f"the original run has not finished (state: {then.state}), so only its completed part is compared"
        )
    for name, recorded in then.history.series.items():
        points = [point for point in recorded if point.step > since]
        if points and not _OF_THE_MACHINE.fullmatch(name):
            found.metrics += 1
            found.points += len(points)
            again = [point for point in series.get(name, []) if point.step > since]
            if difference := _first_difference(points, again[: None if ended else len(points)]):
                found.curves[name] = difference
    found.weights = _weights(then, now, ended)
    differing = compare([then, now])
    found.code, found.environment = differing.code, differing.environment
    found.files = _changed_files(then, now)
    found.data = _differing(then.history.digests, now.history.digests)
    tags = [{name: run.history.tags.get(name) for name in _TAGS} for run in (then, now)]
    found.environment |= _differing(*tags)
    if then.info.changes and not lineage:
        found.notes.append(f"the original run was resumed with other values: {', '.join(then.info.changes)}")
    if since >= 0:
        found.notes.append(
            f"the original run continued from the checkpoint of another job at iteration {since}, so only the part "
            "after this iteration is compared"
        )
    if "stack_width" in then.history.tags and "stack_width" not in now.history.tags:
        found.notes.append(
            "the original run was trained in a stack with other runs, which rounds differently from a single run"
        )
    return found


def _inherited_at(now: StoredRun) -> int:
    """Return the iteration at which the run last continued from another job; -1 if it did not."""
    files = [*(now.directory / INHERITED).glob("*.pt")]
    if not files:
        return -1
    from trainyard.runner import checkpoint  # imports torch

    return max(int(checkpoint.read(file)["iter"]) for file in files)


def _first_difference(then: list[Point], now: list[Point]) -> str:
    """Return the first difference of two curves; empty if they are equal."""
    for one, other in zip(then, now, strict=False):
        at = f"iteration {one.step}" + ("" if one.epoch is None else f" (epoch {one.epoch})")
        if one.step != other.step:
            return f"at {at} then, at iteration {other.step} now"
        if one.value != other.value and not (math.isnan(one.value) and math.isnan(other.value)):
            return f"first at {at}: {one.value!r} then, {other.value!r} now"
    return "" if len(then) == len(now) else f"{len(then)} values then, {len(now)} now"


def _weights(then: StoredRun, now: StoredRun, ended: bool) -> list[str] | None:
    """Return the differences in the weights of the checkpoints that both have; None if there are none to compare.

    Args:
        then: the original run.
        now: its repetition.
        ended: whether the original run finished. If it did not, its `best.pt` may be of an earlier iteration than that
            of the repetition, and is then not compared.
    """
    shared = [path for path in then.checkpoints if (now.directory / "checkpoints" / path.name).exists()]
    if not shared:
        return None
    from trainyard.runner import checkpoint  # imports torch

    found = []
    compared = len(shared)
    for path in shared:
        try:
            mine = checkpoint.read(path)
            theirs = checkpoint.read(now.directory / "checkpoints" / path.name)
        except checkpoint.DamagedCheckpointError as error:
            found.append(f"{path.name}: not compared, because {error}")
            continue
        if not ended and mine.get("iter") != theirs.get("iter"):
            compared -= 1
            continue
        for part in ("model", "eval_model"):
            found += [f"{path.name}: {name}" for name in _different(mine.get(part) or {}, theirs.get(part) or {})]
    return found if compared else None


def _different(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors that are not bit-identical."""
    return [name for name in {**mine, **theirs} if not _same(mine.get(name), theirs.get(name))]


def _same(one: Any, other: Any) -> bool:
    import torch

    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return bool(one == other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    mine, theirs = (each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other))
    return bool(torch.equal(mine, theirs))


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> Rows:
    """Return the values that were known in the original run and differ in the repetition."""
    return {name: [value, now.get(name)] for name, value in then.items() if value not in (None, now.get(name))}


def _changed_files(then: StoredRun, now: StoredRun) -> list[str]:
    """Return the files whose content differs, according to the commits and the uncommitted changes of both."""
    before, after = (_sections(run.directory / "git.diff") for run in (then, now))
    changed = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    commits = [run.info.facts.get("git.commit") for run in (then, now)]
    if None not in commits and commits[0] != commits[1]:
        changed |= set(_names_between(str(commits[0]), str(commits[1]), Path.cwd()))
    return sorted(changed)


def _names_between(commit: str, other: str, folder: Path) -> list[str]:
    """Return the files that differ between two commits, if git has both here."""
    command = ["git", "diff", "--name-only", "--no-color", commit, other, "--"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _sections(diff: Path) -> dict[str, str]:
    """Return the parts of a diff by the file that each changes; empty if there is none."""
    if not diff.is_file():
        return {}
    text = diff.read_text(encoding="utf-8", errors="replace")
    starts = [(found.start(), found[1]) for found in _FILE.finditer(text)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    return {name: text[start:end] for (start, name), end in zip(starts, ends, strict=True)}
