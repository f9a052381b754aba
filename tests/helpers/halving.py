"""Successive halving in two rungs, as a proposer and as a sweeper of Hydra's: the better half is promoted."""

from __future__ import annotations

from collections.abc import Sequence

from trainyard.sweep.events import Began, Ended, Event, Paused, Proposed, Queued, Reported
from trainyard.sweep.proposers import NewJob, Promote, Proposer
from trainyard.track.sweep_position import Rungs


class HalvingProposer(Proposer):
    """Lets every job train to a rung and pause there, and then the better half to its end. More is better.

    Args:
        overrides: the overrides of each job.
        rung: the epoch of the rung.
    """

    def __init__(self, overrides: Sequence[Sequence[str]], rung: int) -> None:
        self._overrides = [tuple(own) for own in overrides]
        self._rungs = Rungs((rung,), until=rung)
        self._proposed: set[tuple[str, ...]] = set()
        self._jobs: set[int] = set()
        self._values: dict[int, float] = {}
        self._paused: set[int] = set()
        self._promoted: set[int] = set()
        self._failed: set[int] = set()

    def ask(self, free: int) -> Sequence[NewJob | Promote]:
        new = [own for own in self._overrides if own not in self._proposed]
        if new:
            return [NewJob(own, rungs=self._rungs) for own in new]
        if len(self._values) + len(self._failed) < len(self._jobs):
            return []
        ranked = sorted(self._values, key=lambda num: (-self._values[num], num))
        chosen = ranked[: max(1, len(ranked) // 2)]
        return [Promote(num) for num in sorted(chosen) if num in self._paused and num not in self._promoted]

    def told(self, event: Event) -> None:
        match event:
            case Proposed(num, overrides):
                self._proposed.add(tuple(overrides))
                self._jobs.add(num)
            case Reported(num, _, value):
                self._values[num] = value
            case Paused(num, by_hand=False):
                self._paused.add(num)
            case Queued(units, _):
                for unit in units:
                    self._paused.difference_update(unit.nums)
                    if unit.rungs is None:
                        self._promoted.update(unit.nums)
            case Ended(num, state) if state != "done" and num not in self._values:
                self._failed.add(num)
            case Began():
                self._failed.clear()  # they are tried again


SWEEPER = """
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from halving import HalvingProposer

class Halving(Sweeper):
    def __init__(self, rung, rates, **others):
        self.rung, self.rates = rung, list(rates)

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        jobs = [[*arguments, f"optim.lr={rate}"] for rate in self.rates]
        self.launcher.run(HalvingProposer(jobs, self.rung))
        self.launcher.close()
"""
"""Plugin of Hydra's, `hydra_plugins/halving_sweeper/__init__.py`: a sweeper that hands the proposer to our launcher."""


def arguments(rung: int, rates: Sequence[float]) -> list[str]:
    """Return the overrides that choose the plugin."""
    listed = ",".join(map(str, rates))
    target = "hydra_plugins.halving_sweeper.Halving"
    return [f"hydra.sweeper._target_={target}", f"+hydra.sweeper.rung={rung}", f"+hydra.sweeper.rates=[{listed}]"]
