"""Stored run: the content of the directory of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped,unused-ignore]

from trainyard.track import journal
from trainyard.track.run_info import RunInfo

CONFIG = "config.yaml"
State = Literal["waiting", "running", "finished", "failed", "interrupted", "killed"]
_ENDED: Mapping[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}


@dataclass(frozen=True)
class Point:
    """Value of a metric: its iteration, its epoch (None in a run that counts only iterations), and its number."""

    step: int
    epoch: int | None
    value: float


@dataclass(frozen=True)
class Best:
    """Best value of the objective, and its position in the run."""

    name: str
    point: Point


@dataclass
class History:
    """Journal of a run, by metric.

    Attributes:
        status: the last status, as in MLflow; empty if there is none.
        message: the message of this status.
        series: the points of each metric, in the order of the journal.
        tags: the tags that the run recorded.
        digests: the digest of each data set, by its name.
        seconds: the training time of the run, over all its attempts.
    """

    status: str = ""
    message: str = ""
    series: dict[str, list[Point]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def read(cls, path: Path) -> History:
        """Read a journal; a missing file gives an empty history."""
        history = cls()
        begun = last = None
        for record, _ in journal.read(path):
            if record["kind"] == "metrics":
                for name, value in record["values"].items():
                    point = Point(record["step"], record.get("epoch"), value)
                    history.series.setdefault(name, []).append(point)
            elif record["kind"] == "tags":
                history.tags |= record["tags"]
            elif record["kind"] == "inputs":
                history.digests |= {each["name"]: each["digest"] for each in record["inputs"]}
            elif record["kind"] == "status":
                if begun is not None and last is not None:  # an attempt ended, or was killed before this one
                    until = last if record["status"] == "RUNNING" else record["time"]
                    history.seconds += max(0.0, until - begun)
                begun = record["time"] if record["status"] == "RUNNING" else None
                history.status, history.message = record["status"], record.get("message", "")
            last = record["time"]
        if begun is not None and last is not None:
            history.seconds += max(0.0, last - begun)
        return history

    def best(self, name: str, direction: str) -> Point | None:
        """Return the best point of a metric (the first of several); None if the metric has no number."""
        points = [point for point in self.series.get(name, ()) if not math.isnan(point.value)]
        if not points:
            return None
        return (max if direction == "maximize" else min)(points, key=lambda point: point.value)


@dataclass(frozen=True)
class StoredRun:
    """A run in a directory. Its files are read when they are first needed.

    Args:
        directory: the run's directory.
        info: its `run.json`.
    """

    directory: Path
    info: RunInfo

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config; empty if it cannot be read."""
        try:
            text = (self.directory / CONFIG).read_text(encoding="utf-8")
            config = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # ten times as fast
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return config if isinstance(config, dict) else {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config, flat: `{"optim.lr": 0.001, "model": "mlp"}`. A group has the name of its option.

        Lists and empty mappings are not flattened.
        """
        groups = {key: value for key, value in self.info.params.items() if isinstance(self.config.get(key), dict)}
        return dict(_flat(self.config)) | groups

    @cached_property
    def history(self) -> History:
        return History.read(self.directory / journal.FILE)

    @property
    def state(self) -> State:
        """The state of the run: `killed` if it is recorded as running but its process does not exist."""
        status = self.history.status
        if status != "RUNNING":
            return _ENDED.get(status, "waiting")
        return "running" if journal.being_written(self.directory / journal.FILE) else "killed"

    @property
    def objective(self) -> str | None:
        found = self.config.get("objective")
        return found if isinstance(found, str) else None

    @property
    def best(self) -> Best | None:
        """The best value of the objective; None if the run has none."""
        name = self.objective
        point = None if name is None else self.history.best(name, str(self.config.get("direction", "maximize")))
        return None if point is None or name is None else Best(name, point)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """One value of each metric.

        For metrics of the objective's split, the value is taken at the best validation, so that these values belong to
        one model. For all other metrics, it is the last value.
        """
        best = self.best
        values = {}
        for name, points in self.history.series.items():
            chosen = points[-1]
            if best is not None and name.partition("/")[0] == best.name.partition("/")[0]:
                chosen = next((point for point in points if point.step == best.point.step), chosen)
            values[name] = chosen.value
        return values

    @property
    def epoch(self) -> int | None:
        """The number of completed epochs according to the journal; None in a run that counts iterations only."""
        return max((p.epoch for s in self.history.series.values() for p in s[-1:] if p.epoch is not None), default=None)

    @property
    def step(self) -> int:
        """The last iteration in the journal."""
        return max((points[-1].step for points in self.history.series.values()), default=0)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Properties of the run: `id`, `name`, `state`, `epoch`, `step`, `started`, `seconds`, `directory`."""
        return {
            "id": self.info.id,
            "name": self.info.name,
            "state": self.state,
            "epoch": self.epoch,
            "step": self.step,
            "started": self.info.start_time,
            "seconds": self.history.seconds,
            "directory": str(self.directory),
        }

    def value(self, name: str) -> Any:
        """Return the property, metric or setting of this name; None if the run has no value of this name."""
        for names in (self.facts, self.metrics, self.settings):
            if name in names:
                return names[name]
        return None

    @property
    def names(self) -> list[str]:
        """Names that `value` knows."""
        return [*self.facts, *self.metrics, *self.settings]

    @property
    def checkpoints(self) -> list[Path]:
        """The files and folders of checkpoints, by name."""
        folder = self.directory / "checkpoints"
        return sorted(path for path in folder.glob("*") if path.suffix != ".json" and path.name[:1] != ".")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _flat(entry, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, value
