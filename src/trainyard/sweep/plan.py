"""What a sweep will do, made and shown before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
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


def varying(jobs: Sequence[Job], command: Sequence[str]) -> list[str]:
    """The overrides that tell jobs apart, in their order: all that the sweeper chose, and all that differ.

    What it chose need not differ between these jobs: a sweeper may hand out one job at a time.

    Args:
        jobs: some of the sweep.
        command: the overrides of the command line, in which `optim.lr=0.1` is fixed and `optim.lr=0.1,0.2` is not.
    """
    parsed = OverridesParser.create().parse_overrides(list(command))
    fixed = {override.get_key_element().lstrip("+") for override in parsed if not override.is_sweep_override()}
    values: dict[str, set[str | None]] = {key: set() for job in jobs for key in job.choices}
    for choices in (job.choices for job in jobs):
        for key, seen in values.items():
            seen.add(choices.get(key))
    return [key for key, seen in values.items() if key not in fixed or len(seen) > 1]


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep, those among them that are to run, and the slots that they run on.

    Args:
        jobs: in the order of their numbers.
        entries: what is known of each, by number.
        slots: of this machine.
        keys: of the overrides that tell the jobs apart.
        directory: the sweep's.
    """

    jobs: Sequence[Job]
    entries: dict[int, Entry]
    slots: Sequence[Slot]
    keys: Sequence[str]
    directory: Path

    @property
    def left(self) -> list[Job]:
        """The jobs that are not done."""
        return [job for job in self.jobs if self.entries[job.num].state != "done"]

    def name(self, job: Job) -> str:
        """A job's name: what was chosen for it, or its number where nothing was."""
        return " ".join(f"{key}={job.choices[key]}" for key in self.keys if key in job.choices) or f"#{job.num}"

    def __str__(self) -> str:
        return self.text(SHOWN)

    def text(self, limit: int | None = None) -> str:
        """The plan for people, with so many of its jobs at most."""
        kinds = Counter((slot.device, slot.threads) for slot in self.slots)
        slots = ", ".join(
            f"{count} on {device} ({threads} thread{'s' * (threads > 1)} each)"
            for (device, threads), count in kinds.items()
        )
        total = f"{len(self.jobs)} job{'s' * (len(self.jobs) != 1)}"
        done = len(self.jobs) - len(self.left)
        before = f", {done} of them done already" if done else ""
        lines = [
            f"{total}{before}; {len(self.left)} to run, {len(self.slots)} at a time: {slots}.",
            f"Sweep: {self.directory}",
        ]
        shown = self.jobs[:limit]
        for job in shown:
            state = self.entries[job.num].state
            lines.append(f"  #{job.num:<4} {self.name(job)}{'' if state == 'waiting' else f'  ({state})'}")
        if len(self.jobs) > len(shown):
            lines.append(f"  … and {len(self.jobs) - len(shown)} more")
        return "\n".join(lines)
