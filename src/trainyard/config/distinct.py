"""Distinct configs of many jobs, with each distinct value stored once, and the result of their trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WHERE = ("seed", "work_dir", "name", "resume")
"""Keys that say where or from which seed a job runs, not what it is."""


@dataclass(frozen=True)
class DistinctConfigs:
    """Configs that differ in more than `WHERE`.

    Attributes:
        nodes: by top-level key, the distinct values.
        jobs: for each config, the number of its value under each key; a key that it does not have is left out.
    """

    nodes: Mapping[str, Sequence[Any]]
    jobs: Sequence[Mapping[str, int]]

    @classmethod
    def of(cls, configs: Sequence[Mapping[str, Any]]) -> tuple[DistinctConfigs, list[int]]:
        """Return the distinct configs of these, and for each of these the number of its distinct one.

        Args:
            configs: not changed meanwhile, with their values kept alive.
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
    """What a job will leave, roughly.

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
        errors: for each config what is wrong with it; None if nothing is, or it was not tried.
        left: the number of configs that were not tried, since that would have taken too long.
        sizes: what each will leave; None where that is not known. Empty if nothing is.
    """

    errors: list[str | None]
    left: int = 0
    sizes: list[JobSize | None] = field(default_factory=list)
