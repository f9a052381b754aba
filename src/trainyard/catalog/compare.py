"""Comparison of runs: where their configs, code, environments and numbers differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainyard.catalog.stored_run import StoredRun

Rows = dict[str, list[Any]]
"""Values by name, one for each run; None if a run has none."""

# Settings of where a run is stored, not of what it does.
_ELSEWHERE = ("work_dir", "tracker.uri")
# IDs of where a run was computed. They differ between any two runs in Slurm, as the IDs of the runs do.
_IDS = ("slurm.job",)


@dataclass(frozen=True)
class Comparison:
    """Differences between runs, in the order of the runs.

    Attributes:
        settings: the entries of the config.
        code: the commit, branch and changes.
        environment: versions, machine, device.
        metrics: all metrics, also equal metrics; see `StoredRun.metrics`.
    """

    settings: Rows
    code: Rows
    environment: Rows
    metrics: Rows


def compare(runs: Sequence[StoredRun]) -> Comparison:
    """Compare two or more runs."""
    settings = [{key: value for key, value in run.settings.items() if key not in _ELSEWHERE} for run in runs]
    return Comparison(
        settings=_differing(settings),
        code=_differing([_facts(run, lambda key: key.startswith("git.")) for run in runs]),
        environment=_differing(
            [_facts(run, lambda key: not key.startswith("git.") and key not in _IDS) for run in runs]
        ),
        metrics=_rows([run.metrics for run in runs]),
    )


def _facts(run: StoredRun, chosen: Callable[[str], bool]) -> dict[str, str]:
    return {key: value for key, value in run.info.facts.items() if chosen(key)}


def _rows(columns: Sequence[Mapping[str, Any]]) -> Rows:
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name) for column in columns] for name in names}


def _differing(columns: Sequence[Mapping[str, Any]]) -> Rows:
    return {name: row for name, row in _rows(columns).items() if any(value != row[0] for value in row[1:])}
