"""What a sweep will do, made and shown before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig

from trainyard.sweep.jobs import Slot
from trainyard.sweep.manifest import Entry

SHOWN = 20


@dataclass(frozen=True)
class Job:
    """One point of a sweep: its number, its overrides, its composed config, its directory."""

    num: int
    overrides: tuple[str, ...]
    config: DictConfig
    directory: Path

    @property
    def choices(self) -> dict[str, str]:
        """The overrides as a mapping: `{"optim.lr": "0.1", "model": "cnn"}`."""
        pairs = (override.partition("=") for override in filter_overrides(self.overrides))
        return {key.lstrip("+"): value if sign else "removed" for key, sign, value in pairs}


def varying(jobs: Sequence[Job]) -> list[str]:
    """The overrides that are not the same for all jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.choices)
    return [key for key in keys if len({job.choices.get(key) for job in jobs}) > 1]


def name(job: Job, keys: Sequence[str]) -> str:
    """A job's name: what varies, or its number where nothing does."""
    return " ".join(f"{key}={job.choices[key]}" for key in keys if key in job.choices) or f"#{job.num}"


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep, those among them that are to run, and the slots that they run on."""

    jobs: Sequence[Job]
    entries: dict[int, Entry]
    slots: Sequence[Slot]

    @property
    def left(self) -> list[Job]:
        """The jobs that are not done."""
        return [job for job in self.jobs if self.entries[job.num].state != "done"]

    def __str__(self) -> str:
        kinds = Counter((slot.device, slot.threads) for slot in self.slots)
        slots = ", ".join(
            f"{count} on {device} ({threads} thread{'s' * (threads > 1)} each)"
            for (device, threads), count in kinds.items()
        )
        done = len(self.jobs) - len(self.left)
        before = f", {done} of them done already" if done else ""
        lines = [
            f"{len(self.jobs)} jobs{before}; {len(self.left)} to run, {len(self.slots)} at a time: {slots}.",
            f"Sweep: {self.jobs[0].directory.parent if self.jobs else ''}",
        ]
        keys = varying(self.jobs)
        for job in self.jobs[:SHOWN]:
            state = self.entries[job.num].state
            lines.append(f"  #{job.num:<4} {name(job, keys)}{'' if state == 'waiting' else f'  ({state})'}")
        if len(self.jobs) > SHOWN:
            lines.append(f"  … and {len(self.jobs) - SHOWN} more")
        return "\n".join(lines)
