"""Proposer of a search: trials of a source, among which a pruner decides which continue."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainyard.errors import TrainyardError
from trainyard.sweep.events import (
    Began,
    Ended,
    Event,
    Paused,
    Proposed,
    Queued,
    Reported,
    SlotsGained,
    SlotsLost,
    Wish,
)
from trainyard.sweep.goals import CONSTRAINTS, Goals, as_number
from trainyard.sweep.proposers.base import NewJob, Promote, Proposal, Proposer, Prune
from trainyard.sweep.proposers.pruners import NoPruner, Pruner
from trainyard.sweep.proposers.source import Source
from trainyard.sweep.proposers.trials import Outcome, Segment, Trial, TrialState, loss
from trainyard.track.sweep_position import Rungs

HOPELESS = 5
"""Number of failed configurations after which a search ends, if these are its first configurations."""


@dataclass(frozen=True)
class Limits:
    """When a search ends.

    Attributes:
        n_trials: the number of trials, where repeats of a configuration count as one; None for no limit.
        timeout: seconds after the first request of a command after which no more trials start; None for no limit.
        target: the value of the objective at which the search is over; None for none.
    """

    n_trials: int | None = None
    timeout: float | None = None
    target: float | None = None


class SearchProposer(Proposer):
    """Requests trials from a source, and asks a pruner which of them continue beyond a rung.

    A decision is a new trial or a promotion; each runs a segment of a job. The results on which a decision depends are
    defined by `order`:

    - `any`: all results that were received before.
    - `job`: results are processed in the order of the decisions, regardless of the order of arrival, and decision k
      waits for the results of the decisions up to k - `width`. Therefore, all decisions are the same regardless of the
      durations of jobs and of kills.

    Args:
        source: the source of the trials.
        pruner: decides which trials continue.
        sign: 1 if a lower objective is better, -1 if a higher one is.
        goals: several objectives (`sign` is that of the first), or constraints; None for a single objective without
            constraints.
        limits: the conditions for the end of the search.
        order: `any` or `job`.
        together: the number of new trials that are requested together for each free slot, such as the width of a stack.
        width: the number of concurrent segments that `job` allows; None for the maximum number of slots at the start.
        identity: the recorded identity of the search.
        clock: returns seconds, for `timeout`.
    """

    def __init__(
        self,
        source: Source,
        pruner: Pruner | None = None,
        *,
        sign: float = 1.0,
        goals: Goals | None = None,
        limits: Limits | None = None,
        order: Literal["any", "job"] = "any",
        together: int = 1,
        width: int | None = None,
        identity: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = dict(identity or {})
        self.goals = goals
        self.listed = source.listed or ()
        self.explores = source.listed is None
        self._source = source
        self._pruner = NoPruner() if pruner is None else pruner
        self._pruner.begin(sign, order == "job")
        self._sign = sign
        self._limits = Limits() if limits is None else limits
        self._in_order = order == "job"
        self._together = together
        self._width = width
        self._clock = clock
        self._began: float | None = None
        self._trials: list[Trial] = []
        self._configurations = 0  # trials that are no repeats
        self._of: dict[int, Trial] = {}  # by the number of the job
        self._segments: list[Segment] = []
        self._latest: dict[int, Segment] = {}  # by the number of the job
        self._values: dict[int, dict[int, tuple[float, Mapping[str, float]]]] = {}  # all reports, by job and place
        self._noticed = 0  # segments whose outcomes were taken notice of, in order
        self._slots = 0
        self._running = 0  # trials that are `running`
        self._wishes: set[int] = set()  # jobs that are to be pruned while they run
        self._is_over = False
        self._without: tuple[int, Any] | None = None  # a job that is done without an objective, and what it returned

    @property
    def trials(self) -> Sequence[Trial]:
        """All trials, with the results that the search has processed."""
        return self._trials

    @property
    def may_be_new(self) -> bool:  # type: ignore[override]
        # One result may be what several decisions wait for.
        return self._in_order or self._source.waits or (self._has_more() and not self._is_over)

    def ask(self, free: int) -> Sequence[Proposal]:
        if self._began is None:
            self._began = self._clock()
        self._check_objectives()
        if self._out_of_time:
            return []
        chosen = self._choice()
        if prunings := self._prunings(chosen == "none"):
            return prunings
        if isinstance(chosen, Trial):
            return [Promote(chosen.num, self._pruner.rungs(chosen.index, chosen.rung))]
        return self._new(free) if chosen == "new" else []

    def _check_objectives(self) -> None:
        """Check that finished trials have an objective.

        Raises:
            TrainyardError: a trial has no objective.
        """
        if self._without is not None:
            num, value = self._without
            given = "nothing" if value is None else repr(value)
            what = "a search" if self.explores else "a grid with a pruner"
            wanted, check = "one number: the objective, as returned by the task function", ""
            if self.goals is not None:
                wanted = f"a number for each of {', '.join(self.goals.metrics)}: "
                wanted += f"there is none for {', '.join(self.goals.missing(value))}"
                check = f"Check the names in hydra.sweeper.objective and {CONSTRAINTS}. "
            raise TrainyardError(
                f"#{num} returned {given}, but {what} needs {wanted}. {check}A job without a value must "
                "return NaN or raise an error. To start again, use another hydra.sweep.dir."
            )

    def first_rungs(self, index: int) -> Rungs | None:
        return self._pruner.rungs(index, 0)

    def judge(self, num: int, at: int, value: float) -> Wish | None:
        return "prune" if num in self._wishes else None

    @property
    def ending(self) -> Sequence[str]:
        lines, target = [], self._limits.target
        what, each = ("search", "trials") if self.explores else ("sweep", "jobs")
        if self._is_hopeless and self._source.has_more(self._trials, self._limits.n_trials):
            lines.append(f"The {what} ended because its first {HOPELESS} {each} failed.")
        values = [trial.value for trial in self._trials if trial.value is not None]
        if values and all(map(math.isnan, values)):
            lines.append(f"All objectives of the {each} are NaN.")
        if target is not None:
            reached = "was reached, which ended the search" if self._is_over else "was not reached"
            lines.append(f"The target {target:.12g} {reached}.")
        return lines

    def told(self, event: Event) -> None:
        match event:
            case SlotsGained(slots):
                self._slots += len(slots)
                if self._width is None:
                    self._width = len(slots) * self._together
            case SlotsLost(indices):
                self._slots -= len(indices)
            case Began(slots):
                self._slots = 0
                if self._width is None and slots:
                    self._width = slots * self._together
            case Proposed(num, overrides, rungs, note=note):
                self._choice()  # takes notice of what this decision was made by
                self._of[num] = self._source.place(Trial(len(self._trials), num, tuple(overrides), note or {}))
                self._trials.append(self._of[num])
                self._configurations += self._of[num].repeat == 0
                self._running += 1
                self._begin(num, rungs)
            case Queued(units, why):
                if why in ("promoted", "resumed"):
                    for unit in units:
                        self._go_on([num for num in unit.nums if num in self._of], unit.rungs, why == "promoted")
                if not why or self._in_order:
                    self._prepare()
            case Reported(num, at, value, metrics) if num in self._of:
                self._values.setdefault(num, {})[at] = value, dict(metrics)
                if self._latest[num].until is None and not self._in_order:
                    self._report(self._of[num], at, value, dict(metrics))
            case Paused(num, by_hand=by_hand) if num in self._of:
                until = self._latest[num].until
                known = None if until is None else self._values.get(num, {}).get(until)
                if known is None:
                    self._end(num, Outcome("held" if by_hand else "failed"))
                else:
                    self._end(num, Outcome("held" if by_hand else "paused", until, *known))
            case Ended(num, state, _, objective) if num in self._of:
                self._wishes.discard(num)
                if state in ("pruned", "stopped"):
                    self._choice()
                    self._out(self._of[num])
                elif state == "done":
                    self._done(num, objective)
                elif state != "interrupted":
                    self._end(num, Outcome("failed"))

    # -- decisions -----------------------------------------------------------------------------------------------------

    def _choice(self) -> Trial | Literal["new", "none"]:
        """Return the next decision, after processing only the results that it needs."""
        made = len(self._segments)
        while True:
            if not self._in_order or self._noticed >= self._due(made):
                trial = None if self._is_over else self._pruner.promotable()
                if trial is not None:
                    return trial
                if self._has_more() and not self._is_over:
                    return "new"
            if not self._notice_next():
                break
        if not self._running and not self._is_over and not any(each.state == "done" for each in self._trials):
            return self._pruner.best_paused() or "none"  # so that one is trained to its end
        return "none"

    def _has_more(self, pending: Sequence[Trial] = ()) -> bool:
        """Return whether there is a trial to suggest now; there is none after the first ones have all failed.

        Args:
            pending: the trials that are about to be proposed.
        """
        if self._is_hopeless:
            return False
        trials = [*self._trials, *pending] if pending else self._trials
        return self._source.has_more(trials, self._limits.n_trials)

    @property
    def _is_hopeless(self) -> bool:
        first = (each for each in self._trials if each.index < HOPELESS)  # with their repeats
        return self._configurations >= HOPELESS and all(each.state == "failed" for each in first)

    @property
    def _out_of_time(self) -> bool:
        timeout = self._limits.timeout
        return timeout is not None and self._began is not None and self._clock() - self._began >= timeout

    def _new(self, free: int) -> list[Proposal]:
        """Return new trials for the free slots, as long as no result must be processed between them."""
        found: list[Proposal] = []
        pending: list[Trial] = []
        made = len(self._segments)
        while len(found) < free * self._together and self._has_more(pending):
            if self._in_order and self._noticed < self._due(made + len(found)):
                break
            index = len(self._trials) + len(pending)
            own = self._source.suggest(index, [*self._trials, *pending])
            pending.append(self._source.place(Trial(index, -1, own.overrides, own.note)))
            rungs = None if pending[-1].repeat else self._pruner.rungs(pending[-1].index, 0)
            found.append(NewJob(own.overrides, rungs=rungs, note=own.note))
        return found

    def _prepare(self) -> None:
        """Let the source prepare the trial for the next free slot, if it can already be known.

        With one slot, each trial uses the result of the previous one, so that a killed search continues identically.
        """
        if self._began is None or not (self._in_order or self._slots > 1) or self._choice() != "new":
            return
        count, made = self._together, len(self._segments)
        if self._limits.n_trials is not None:
            count = min(count, self._limits.n_trials - self._configurations)
        if self._in_order:
            count = min(count, sum(self._noticed >= self._due(made + ahead) for ahead in range(count)))
        if count > 0:
            self._source.prepare(count, self._trials)

    def _due(self, decision: int) -> int:
        """Return the number of results to process before a decision, with `order=job`."""
        return 0 if self._width is None else decision - self._width + 1

    def _prunings(self, nothing_else: bool) -> list[Proposal]:
        """Return the trials that can no longer be promoted: all paused ones, when the search has reached its end.

        Args:
            nothing_else: whether there is nothing else to start.
        """
        if nothing_else and not self._running:
            left = [trial for trial in self._trials if trial.state == "paused"]
        else:
            total = self._limits.n_trials
            coming = math.inf if total is None else total - self._configurations + self._running
            left = [trial for trial in self._pruner.hopeless(coming) if trial.state == "paused"]
        return [Prune(trial.num, f"pruned at rung {max(trial.reports)}") for trial in left]

    def _go_on(self, nums: Sequence[int], rungs: Rungs | None, is_decision: bool) -> None:
        """Record that paused jobs continue: by a decision of the search, or because a user has resumed them."""
        for num in nums:
            if is_decision:
                self._choice()
            self._leave(self._of[num], "running")
            self._running += 1
            if is_decision:
                self._begin(num, rungs)

    def _begin(self, num: int, rungs: Rungs | None) -> None:
        self._latest[num] = Segment(num, None if rungs is None else rungs.until)
        self._segments.append(self._latest[num])

    # -- results -------------------------------------------------------------------------------------------------------

    def _notice_next(self) -> bool:
        """Process the next outcome, in the order of the decisions; return whether there was one."""
        if not self._in_order or self._noticed == len(self._segments):
            return False
        segment = self._segments[self._noticed]
        if segment.outcome is None:
            return False
        self._noticed += 1
        self._notice(segment)
        return True

    def _done(self, num: int, returned: Any) -> None:
        """Record the result of a job at its end."""
        if self.goals is None:
            value, metrics, lacks = as_number(returned), dict[str, float](), as_number(returned) is None
        else:
            metrics = self.goals.measured(returned)
            value, lacks = metrics.get(self.goals.names[0]), bool(self.goals.missing(returned))
        if lacks:
            self._without = num, returned
        self._end(num, Outcome("done", None, value, metrics))

    def _end(self, num: int, outcome: Outcome) -> None:
        segment = self._latest[num]
        is_late = segment.outcome is not None  # a job that had failed was tried again
        segment.outcome = outcome
        if not self._in_order or (is_late and segment not in self._segments[self._noticed :]):
            self._notice(segment)

    def _notice(self, segment: Segment) -> None:
        trial, outcome = self._of[segment.num], segment.outcome
        assert outcome is not None
        if trial.state == "pruned":
            return
        self._leave(trial, outcome.state)
        if outcome.state in ("paused", "held"):
            if outcome.at is not None:
                assert outcome.value is not None
                self._report(trial, outcome.at, outcome.value, outcome.metrics)
            if outcome.state == "held":
                self._pruner.left(trial)
            return
        trial.result, trial.metrics = outcome.value, outcome.metrics
        self._judge_target(trial)
        self._pruner.ended(trial)

    def _report(self, trial: Trial, at: int, value: float, metrics: Mapping[str, float]) -> None:
        if at in trial.reports:
            return
        if self.goals is not None:
            trial.metrics = metrics
            trial.violation = math.fsum(max(0.0, each) for each in self.goals.known_violations(metrics))
        trial.reports[at] = value
        trial.rung += 1
        if not self._pruner.reported(trial, at) and trial.state == "running":
            self._wishes.add(trial.num)
        self._judge_target(trial)

    def _judge_target(self, trial: Trial) -> None:
        target = self._limits.target
        if target is None or (self.goals is not None and self.goals.violation(trial.metrics) > 0):
            return
        if loss(self._source.known(trial, self._trials), self._sign) <= self._sign * target:
            self._is_over = True

    def _out(self, trial: Trial) -> None:
        """Record that a trial will not continue."""
        if self._latest[trial.num].outcome is None:
            self._latest[trial.num].outcome = Outcome("failed")
        self._leave(trial, "pruned")
        self._pruner.ended(trial)

    def _leave(self, trial: Trial, state: TrialState) -> None:
        if trial.state == "running":
            self._running -= 1
        elif trial.state == "paused":
            self._pruner.left(trial)
        trial.state = state
