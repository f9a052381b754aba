"""Trials from an Optuna sampler."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from trainyard.sweep.goals import Direction, Goals
from trainyard.sweep.proposers.highest_rung import at_highest_rung
from trainyard.sweep.proposers.quiet import quiet
from trainyard.sweep.proposers.source import Source, Suggestion
from trainyard.sweep.proposers.space import Space, suggest
from trainyard.sweep.proposers.trials import Trial, loss

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

MakeSampler = Callable[[int], "BaseSampler"]
"""Returns a sampler with a seed."""

CONSTRAINTS = "constraints"  # under which samplers of Optuna's look for what a trial violates
STUDY, TRIAL = "study", "trial"  # in a note: what a sampler has stored with the study, and with the trial


class SamplerSource(Source):
    """Uses a new sampler for each trial, with a seed derived from `(seed, number of the trial)`.

    The sampler sees a study that is recreated each time, so that a suggestion is a function of the recorded trials.
    Data that a sampler stores for later (a generation, the state of CMA-ES) is in the note of the trial at which it was
    stored.

    Args:
        space: the space of the search.
        sampler: creates the sampler.
        seed: the seed of the search.
        sign: 1 if a lower objective is better, -1 if a higher one is.
        goals: several objectives, or constraints; None for a single objective without constraints.
        one_seed: whether the sampler has the same seed for all trials, as needed for the points of a sequence.
        knows_pruned: whether the sampler uses pruned trials, as TPE does. For other samplers, the last report of a
            trial is its objective.
        knows_noise: whether the sampler estimates the noise of the objective, as a Gaussian process does: it sees each
            repeat of a configuration as a trial. For other samplers, a configuration is one trial with the mean.
        at_rung: the number of trials that a rung needs for the sampler to see only the values of that rung (see
            `at_highest_rung`); None: it sees every trial, with its last report.
        learns: whether the sampler uses earlier trials. Others see a study without trials, since creating them takes
            longer than a suggestion at random.
        given: points to try first, in order: values by name. Missing values are suggested.
        earlier: trials of other searches, from which to learn.
    """

    def __init__(
        self,
        space: Space,
        sampler: MakeSampler,
        *,
        seed: int = 0,
        sign: float = 1.0,
        goals: Goals | None = None,
        one_seed: bool = False,
        knows_pruned: bool = True,
        knows_noise: bool = False,
        at_rung: int | None = None,
        learns: bool = True,
        given: Sequence[Mapping[str, Any]] = (),
        earlier: Sequence[FrozenTrial] = (),
    ) -> None:
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._sign = sign
        self._goals = goals
        self._one_seed = one_seed
        self._knows_pruned = knows_pruned
        self._knows_noise = knows_noise
        self._at_rung = at_rung
        self._learns = learns
        self._given = given
        self._earlier = earlier

    def suggest(self, index: int, trials: Sequence[Trial]) -> Suggestion:
        with quiet():
            study = self.study(trials if self._learns else ())
            if index < len(self._given):
                study.enqueue_trial(dict(self._given[index]))
            study.sampler = self._sampler(self._seed_of(index))
            before = dict(study._storage.get_study_system_attrs(study._study_id))
            asked = study.ask()
            overrides = self._space.ask(lambda name, distribution: suggest(asked, name, distribution))
            kept = study._storage.get_trial_system_attrs(asked._trial_id)
            after = study._storage.get_study_system_attrs(study._study_id)
        changed = {key: value for key, value in after.items() if before.get(key) != value}
        note = {TRIAL: dict(kept)} if kept else {}
        return Suggestion(overrides, {**note, STUDY: changed} if changed else note)

    def study(self, trials: Sequence[Trial]) -> Study:
        """Return a study of these trials, and of those of other searches before them."""
        import optuna

        own: tuple[Direction, ...] = ("minimize" if self._sign > 0 else "maximize",)
        study = optuna.create_study(directions=own if self._goals is None else self._goals.directions)
        earlier, seen = self._earlier, trials
        if self._at_rung is not None:
            seen, is_end = at_highest_rung(trials, self._at_rung, len(earlier))
            earlier = earlier if is_end else ()
        repeats = chain.from_iterable(map(self._repeats, seen)) if self._knows_noise else ()
        study.add_trials([*earlier, *map(self._frozen, seen), *repeats])
        for trial in trials:
            for key, value in trial.note.get(STUDY, {}).items():
                study._storage.set_study_system_attr(study._study_id, key, copy.deepcopy(value))
        return study

    def _seed_of(self, index: int) -> int:
        if self._one_seed:
            return self._seed
        return int(np.random.SeedSequence([self._seed, index]).generate_state(1)[0])

    def _repeats(self, trial: Trial) -> Iterator[FrozenTrial]:
        """Yield the repeats of a configuration except the one that `_frozen` returns."""
        for value in trial.results[1:]:
            yield self._frozen(replace(trial, result=value, results=(), note={}))

    def _frozen(self, trial: Trial) -> FrozenTrial:
        from optuna.trial import TrialState, create_trial

        params = self._space.values(trial.overrides)
        state, value = TrialState.RUNNING, None
        system_attrs = copy.deepcopy(dict(trial.note.get(TRIAL, {})))
        if self._goals is not None:
            if trial.state == "done":
                return complete(self._goals, trial.metrics, self._space, params, system_attrs)
            if self._goals.constraints and trial.reports:
                system_attrs[CONSTRAINTS] = self._goals.known_violations(trial.metrics)
        if trial.state == "failed" or (trial.state in ("pruned", "held") and not trial.reports):
            state = TrialState.FAIL
        elif trial.state == "done":
            own = trial.results[0] if self._knows_noise and trial.results else trial.result
            state, value = TrialState.COMPLETE, self._told(own)
        elif trial.reports and self._knows_pruned:
            state = TrialState.PRUNED
        elif trial.reports:
            state, value = TrialState.COMPLETE, self._told(trial.value)
        return create_trial(
            state=state,
            value=value,
            params=params,
            distributions=self._space.distributions(list(params)),
            intermediate_values={at: self._told(each) for at, each in trial.reports.items()},
            system_attrs=system_attrs,
        )

    def _told(self, value: float | None) -> float:
        """Return a value for Optuna, which does not accept NaN: a missing value is the worst possible one."""
        return self._sign * loss(value, self._sign) if value is None or math.isnan(value) else value


def complete(
    goals: Goals,
    metrics: Mapping[str, float],
    space: Space,
    params: Mapping[str, Any],
    system_attrs: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """Return a finished Optuna trial, with its objectives and constraint violations."""
    from optuna.trial import create_trial

    attrs = dict(system_attrs or {})
    if goals.constraints:
        attrs[CONSTRAINTS] = goals.violations(metrics)
    return create_trial(
        values=[sign * each for sign, each in zip(goals.signs, goals.losses(metrics), strict=True)],
        params=dict(params),
        distributions=space.distributions(list(params)),
        system_attrs=attrs,
    )
