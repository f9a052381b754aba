"""Distinct configs of many jobs, with each distinct value stored once, and the result of their trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WHERE = ("seed", "work_dir", "name", "resume")
"""Keys for the place and the seed of a job, which do not define what it computes."""


@dataclass(frozen=True)
class DistinctConfigs:
    """Configs that differ in more than `WHERE`.

    Attributes:
        nodes: the distinct values, by top-level key.
        jobs: for each config, the number of its value under each key; missing keys are omitted.
    """

    nodes: Mapping[str, Sequence[Any]]
    jobs: Sequence[Mapping[str, int]]

    @classmethod
    def of(cls, configs: Sequence[Mapping[str, Any]]) -> tuple[DistinctConfigs, list[int]]:
        """Return the distinct configs, and the number of the distinct config for each config.

        Args:
            configs: must not change in the meantime, and their values must be kept alive.
        """
        nodes: dict[str, list[Any]] = {}
        numbers: dict[tuple[str, str], int] = {}  # by key and value
        seen: dict[tuple[str, int], int] = {}  # by key and object: configs share most of their values
        found: dict[tuple[tuple[str, int], ...], int] = {}
        which = []
        for config in configs:
            own = []
            for key, value in config.items():
                number = seen.get((key, id(value)))
                if number is None:
                    mark = key, "" if key in WHERE else repr(value)
                    if mark not in numbers:
                        numbers[mark] = len(nodes.setdefault(key, []))
                        nodes[key].append(value)
                    number = seen[key, id(value)] = numbers[mark]
                own.append((key, number))
            which.append(found.setdefault(tuple(own), len(found)))
        return cls(nodes, [dict(job) for job in found]), which

    def values(self, number: int) -> dict[str, Any]:
        """Return config number `number`."""
        return {key: self.nodes[key][index] for key, index in self.jobs[number].items()}


@dataclass(frozen=True)
class JobSize:
    """Approximate size of the results of a job.

    Attributes:
        checkpoints: bytes of the checkpoints that it keeps.
        rows: rows of metrics in MLflow.
    """

    checkpoints: int
    rows: int


@dataclass
class TrialResult:
    """Result of a trial of distinct configs.

    Attributes:
        errors: the error of each config; None if there is none, or if the config was not tried.
        left: the number of configs that were not tried, because this would have taken too long.
        sizes: the size of each job; None if unknown. Empty if all sizes are unknown.
    """

    errors: list[str | None]
    left: int = 0
    sizes: list[JobSize | None] = field(default_factory=list)
