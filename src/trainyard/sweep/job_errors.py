"""Errors in the configs of jobs, in one report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import filter_overrides
from omegaconf import OmegaConf

from trainyard.config.explain import explain
from trainyard.config.places import ConfigPlaces
from trainyard.errors import TrainyardError, counted
from trainyard.sweep.plan import Job, SweepPlan


def told(wrong: Sequence[tuple[Job, Exception]], plan: SweepPlan, in_own_words: bool) -> list[str]:
    """Return each distinct error with its job count and first job, with the message of Hydra or of `explain`."""
    jobs: dict[str, list[Job]] = {}
    words: dict[tuple[str, str], str] = {}
    for job, error in wrong:
        # Values, which differ from job to job, are in later lines. Explaining an error takes a tenth of a second.
        start = str(error).partition("\n")[0] or repr(error.__cause__), getattr(error, "override", "")
        if isinstance(error, TrainyardError):
            text = str(error)
        elif start in words:
            text = words[start]
        else:
            text = words[start] = (
                in_own_words and _explained(error, job)
            ) or f"{type(error).__name__}: {error}".strip()
        jobs.setdefault(text, []).append(job)
    count = counted(len(plan.jobs), "job")
    return [
        f"{text}\n    in {len(those)} of {count}, first in {_label(those[0], plan)}" for text, those in jobs.items()
    ]


def _label(job: Job, plan: SweepPlan) -> str:
    chosen = plan.chosen(job)
    return f"#{job.num}: {chosen}" if chosen else f"#{job.num}"


def _explained(error: Exception, job: Job) -> str | None:
    """Return this project's explanation of Hydra's error about a job of ours; None if the error is not Hydra's."""
    hydra: Any = OmegaConf.to_container(job.config.hydra)
    overrides = [*hydra["overrides"]["hydra"], *filter_overrides(job.overrides)]
    with _hydra_left_alone():
        known = explain(error, overrides, ConfigPlaces.of_composed(hydra))
    return None if known is None else str(known)


@contextmanager
def _hydra_left_alone() -> Iterator[None]:
    hydra = GlobalHydra.instance().hydra
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
