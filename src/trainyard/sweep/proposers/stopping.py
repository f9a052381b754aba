"""Pruners of Optuna, which end unpromising trials; nothing is promoted later."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainyard.checks import choice, integer
from trainyard.sweep.proposers.pruners import UNITS, Pruner
from trainyard.sweep.proposers.quiet import quiet
from trainyard.sweep.proposers.trials import Trial
from trainyard.track.sweep_position import Rungs

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner


class StoppingPruner(Pruner):
    """Asks an Optuna pruner at every rung. Rungs are `first`, `first + every`, `first + 2 * every`, ….

    If trials need not pause, a trial continues while it is judged, and is asked to end when it is pruned.

    Args:
        pruner: the pruner.
        last: the length of the entire training, after which there are no rungs.
        first: the epoch, or iteration, of the first rung.
        every: the distance between rungs.
        by: `epoch` or `iter`.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, pruner: BasePruner, last: int, first: int = 1, every: int = 1, by: str = "epoch") -> None:
        last = integer("last", last, at_least=1)
        self.by = choice("by", by, UNITS)  # type: ignore[assignment]
        self.places = range(integer("first", first, at_least=1), last, integer("every", every, at_least=1))
        self._pruner = pruner
        self._kept: dict[int, Trial] = {}
        self._pruned: dict[int, Trial] = {}

    def begin(self, sign: float, pauses: bool) -> None:
        import optuna

        super().begin(sign, pauses)
        self._pauses = pauses
        with quiet():
            self._study = optuna.create_study(
                direction="minimize" if sign > 0 else "maximize",
                sampler=optuna.samplers.RandomSampler(0),  # samples nothing
                pruner=self._pruner,
            )
        self._trials: dict[int, optuna.Trial] = {}

    def rungs(self, index: int, reached: int) -> Rungs | None:
        left = tuple(self.places[reached:])
        if not left:
            return None
        return Rungs(left[:1], self.by, until=left[0]) if self._pauses else Rungs(left, self.by)

    def reported(self, trial: Trial, at: int) -> bool:
        if trial.index not in self._trials:
            self._trials[trial.index] = self._study.ask()
        own = self._trials[trial.index]
        value = trial.reports[at]
        own.report(self.sign * math.inf if math.isnan(value) else value, at)
        if own.should_prune():
            self._pruned[trial.index] = trial
            return False
        self._kept[trial.index] = trial
        return True

    def promotable(self) -> Trial | None:
        return next(iter(self._kept.values()), None) if self._pauses else None

    def left(self, trial: Trial) -> None:
        self._kept.pop(trial.index, None)

    def ended(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        self._pruned.pop(trial.index, None)
        own = self._trials.pop(trial.index, None)
        if own is None:
            return
        if trial.state == "done" and trial.result is not None and not math.isnan(trial.result):
            self._study.tell(own, trial.result)
        else:
            self._study.tell(own, state=TrialState.PRUNED if trial.state == "pruned" else TrialState.FAIL)

    def hopeless(self, coming: float) -> Iterator[Trial]:
        yield from (trial for trial in self._pruned.values() if trial.state == "paused")
