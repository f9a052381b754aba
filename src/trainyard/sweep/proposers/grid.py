"""Proposer of a grid, which never learns: all its jobs are known from the start.

A batch that a Hydra sweeper launches is such a grid: `trainyard.sweep.sweep.Sweep.launch`.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainyard.sweep.proposers.base import NewJob, Proposal, Proposer


class GridProposer(Proposer):
    """Proposes a known list of jobs in one call.

    Args:
        overrides: the overrides of each job.
        first: the number of the first job.
    """

    def __init__(self, overrides: Sequence[Sequence[str]], first: int = 0) -> None:
        self._overrides = overrides
        self._first = first
        self._asked = False

    def ask(self, free: int) -> Sequence[Proposal]:
        if self._asked:
            return []
        self._asked = True
        return [NewJob(tuple(own), num) for num, own in enumerate(self._overrides, self._first)]
