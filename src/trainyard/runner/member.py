"""What a Runner trains: one or more members, each with a directory, a journal and an objective of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainyard.errors import ConfigError
from trainyard.track import Journal, RunInfo, Status, Tracker
from trainyard.track.journal import Point

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """The one number that ranks runs: best checkpoint, early stopping, sweep ranking and search all read it."""

    name: str = "val/loss"
    direction: Direction = "minimize"

    def __post_init__(self) -> None:
        if self.direction not in ("maximize", "minimize"):
            raise ConfigError("direction", self.direction, "maximize or minimize", options=("maximize", "minimize"))

    def better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Whether `value` beats `than` by more than `by`. NaN beats nothing; any other number beats None and NaN."""
        if math.isnan(value):
            return False
        if than is None or math.isnan(than):
            return True
        return value > than + by if self.direction == "maximize" else value < than - by


@dataclass
class Best:
    """The best objective so far, and where in the training it was seen."""

    value: float
    epoch: int
    iter: int


@dataclass
class Member:
    """One experiment: one seed, one directory, one journal, one run in MLflow.

    `best` is the best objective. `stop` ends this member and no other.

    Attributes:
        pending: called before anybody looks: it hands over, by `take`, the points that wait. None: there are none.
    """

    seed: int
    work_dir: Path | None
    objective: Objective
    info: RunInfo = field(default_factory=lambda: RunInfo("run"), compare=False)
    journal: Journal | None = None
    best: Best | None = None
    stop_reason: str | None = None
    failed: bool = False
    pending: Callable[[], None] | None = field(default=None, init=False, compare=False, repr=False)
    _metrics: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value under each name."""
        self._take_pending()
        return self._metrics

    @property
    def directory(self) -> Path:
        """The member's directory; only a run that leaves nothing behind has none."""
        assert self.work_dir is not None
        return self.work_dir

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def open(self, tracker: Tracker, *, resume: bool) -> None:
        """Begin, or go on with, the member's journal and its run in MLflow.

        Raises:
            TrainyardError: the directory holds a run already, or another process trains in it.
            OSError: the directory cannot be written.
        """
        if self.work_dir is None:
            return
        if self.journal is None:
            self.work_dir.mkdir(parents=True, exist_ok=True)
            self.journal = Journal(self.work_dir)
            self.journal.pending = self._take_pending
            tracker.open(self.work_dir, self.info, resume=resume)
        self.journal.status("RUNNING")

    def close(self, status: Status, message: str = "") -> None:
        """Note how the run ended, where it did not fail by itself; it can be opened again."""
        if self.failed and status == "FINISHED":
            status, message = "FAILED", str(self.stop_reason)
        if self.journal is not None:
            self.journal.status(status, message)

    def stop(self, reason: str, *, failed: bool = False) -> None:
        """End this member's training after the present iteration; `failed` marks its run as failed."""
        self.stop_reason = reason
        self.failed = failed

    def record(self, values: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Keep the values as the latest and append them to the journal."""
        self.metrics.update(values)
        if self.journal is not None:
            self.journal.metrics(step, values, epoch=epoch)

    def take(self, points: Sequence[Point]) -> None:
        """Record all these points, in their order."""
        names: tuple[str, ...] = ()
        values: Sequence[float] = ()
        for _, _, _, own, found in points:
            if own is not names:
                self._metrics.update(zip(names, values, strict=True))
            names, values = own, found
        self._metrics.update(zip(names, values, strict=True))
        if self.journal is not None:
            self.journal.points(points)

    def _take_pending(self) -> None:
        if self.pending is not None:
            self.pending()

    def latest(self, name: str, key: str) -> float:
        """The latest value of a metric that the config names under `key`.

        Raises:
            ConfigError: nobody computes a metric of that name.
        """
        metrics = self.metrics
        if name not in metrics:
            names = [known for known in metrics if not known.startswith("train/")]
            raise ConfigError(key, name, f"a metric of this run: {', '.join(names)}", options=names)
        return metrics[name]

    def judge(self, *, step: int, epoch: int) -> None:
        """Compare the latest objective with the best."""
        value = self.latest(self.objective.name, "objective")
        if self.objective.better(value, self.best.value if self.best else None):
            self.best = Best(value, epoch, step)

    def is_best(self, step: int) -> bool:
        """Whether the best objective is the one seen at iteration `step`."""
        return self.best is not None and self.best.iter == step

    def state_dict(self) -> dict[str, Any]:
        best = None if self.best is None else vars(self.best).copy()
        return {"metrics": dict(self.metrics), "best": best, "stop_reason": self.stop_reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._metrics = dict(state["metrics"])
        self.best = None if state["best"] is None else Best(**state["best"])
        self.stop_reason = state["stop_reason"]


def read(values: Mapping[str, Tensor], count: int) -> list[dict[str, float]]:
    """Device numbers as Python floats, a mapping per member, with one synchronisation for all of them.

    Args:
        values: under each name a tensor `[]` (a solo run) or `[count]` (a fused group).
        count: how many members there are.
    """
    if not values:
        return [{} for _ in range(count)]
    table = torch.stack([value.detach().reshape(-1).expand(count).to(torch.float64) for value in values.values()])
    columns: Sequence[Sequence[float]] = table.t().tolist()
    return [dict(zip(values, column, strict=True)) for column in columns]
