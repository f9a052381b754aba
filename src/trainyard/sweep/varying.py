"""Keys of overrides that distinguish the jobs of a sweep. Their number grows as jobs are added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override

from trainyard.sweep.plan import Job


class VaryingKeys:
    """Keys that the sweeper chose, and keys whose values differ. The time to add a job depends only on its own keys.

    Values that a sweeper chose need not differ between these jobs, because a sweeper may launch one job at a time.

    Args:
        command: the overrides of the command line, of which `optim.lr=0.1` is fixed and `optim.lr=0.1,0.2` is not.
    """

    def __init__(self, command: Sequence[str]) -> None:
        parsed = OverridesParser.create().parse_overrides(list(command))
        self._fixed = {each.get_key_element().lstrip("+") for each in parsed if _has_one_value(each)}
        self._first: dict[str, str | None] = {}  # a value of each key; None where a job does not have it
        self._differ: set[str] = set()
        self._count = 0

    def add(self, jobs: Iterable[Job]) -> Sequence[str]:
        """Add jobs, and return the keys that distinguish all jobs so far, in the order of their first appearance."""
        for job in jobs:
            choices = job.choices
            for key, value in choices.items():
                if key not in self._first:
                    self._first[key] = None if self._count else value
                if self._first[key] != value:
                    self._differ.add(key)
            self._differ.update(self._first.keys() - choices.keys())
            self._count += 1
        return [key for key in self._first if key not in self._fixed or key in self._differ]


def varying(jobs: Iterable[Job], command: Sequence[str]) -> Sequence[str]:
    """Return the keys of overrides that distinguish jobs, in order: see `VaryingKeys`."""
    return VaryingKeys(command).add(jobs)


def _has_one_value(override: Override) -> bool:
    value = override.value()
    return not override.is_sweep_override() or (isinstance(value, ChoiceSweep) and len(value.list) == 1)
