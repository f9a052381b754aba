"""Population-based training: the worst members of a population continue as copies of the best ones, with other values.

Jaderberg and others, 2017, "Population based training of neural networks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from trainyard.sweep.events import Began, Ended, Event, Inherited, Paused, Proposed, Queued, Reported
from trainyard.sweep.proposers.base import NewJob, Promote, Proposal, Proposer
from trainyard.sweep.proposers.given_settings import SEED
from trainyard.sweep.proposers.space import Parameter, Space
from trainyard.sweep.proposers.trials import loss
from trainyard.track.sweep_position import Rungs

Explore = Literal["perturb", "resample"]


@dataclass(frozen=True)
class Exploration:
    """Changes of values when a member continues from another one.

    Attributes:
        space: the keys that vary, and their ranges.
        how: the kind of change, by key; by default, numbers are perturbed and choices are drawn again.
        factors: a perturbed number is multiplied by one of these and stays in its range; a perturbed choice becomes the
            previous or the next one.
    """

    space: Space
    how: Mapping[str, Explore]
    factors: tuple[float, float] = (0.8, 1.25)

    def first(self, random: Random) -> tuple[str, ...]:
        """Return the overrides of a member of the first generation."""
        return self.space.ask(lambda name, distribution: drawn(self.space.parameters[name], random))

    def next(self, overrides: Sequence[str], random: Random) -> tuple[str, ...]:
        """Return the overrides for a member that continues from a member with these overrides."""
        found = []
        for line in overrides:
            key, _, text = line.partition("=")
            parameter = self.space.parameters.get(key.lstrip("+"))
            if parameter is None:
                found.append(line)
                continue
            choices = getattr(parameter.distribution, "choices", None)
            how = self.how.get(parameter.name, "perturb" if choices is None else "resample")
            if how == "resample":
                value = drawn(parameter, random)
            else:
                value = perturbed(parameter, parameter.value(text), self.factors, random)
            found.append(parameter.line(value))
        return tuple(found)


def drawn(parameter: Parameter, random: Random) -> Any:
    """Return a random value of a parameter, uniformly distributed (on a logarithmic scale if the parameter is
    logarithmic)."""
    distribution: Any = parameter.distribution
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return random.choice(choices)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return within(parameter, math.exp(random.uniform(math.log(low), math.log(high))))
    return within(parameter, random.uniform(low, high))


def perturbed(parameter: Parameter, value: Any, factors: Sequence[float], random: Random) -> Any:
    """Return a value near another one."""
    factor = random.choice(factors)
    choices = getattr(parameter.distribution, "choices", None)
    if choices is not None:
        at = choices.index(value) + (1 if factor > 1 else -1)
        return choices[min(max(at, 0), len(choices) - 1)]
    found = within(parameter, value * factor)
    if found == value and isinstance(value, int):
        found = within(parameter, value + (1 if factor > 1 else -1))
    return found


def within(parameter: Parameter, value: float) -> Any:
    """Return the value of a number's range that is nearest to another one."""
    distribution: Any = parameter.distribution
    low, high = distribution.low, distribution.high
    value = min(max(value, low), high)
    if distribution.step is not None:
        value = low + round((value - low) / distribution.step) * distribution.step
        value = min(value, high)
    return round(value) if isinstance(low, int) else float(value)


class PopulationProposer(Proposer):
    """Trains a population in generations.

    All members train to the next position, at which the worst continue as copies of the best. A generation is decided
    when all members have reported and paused, so the decision does not depend on their order, and a killed sweep
    continues identically. A failed member no longer belongs to the population. A member that a user has paused does not
    belong to the population until a user resumes it; the member then trains to the generation of the others.

    Args:
        exploration: the initial values, and their changes.
        population: the number of members.
        places: the epochs, or iterations, at which generations end, without the end of the training.
        by: the unit: `epoch` or `iter`.
        quantile: the fraction of members that are replaced, and of those that are copied.
        sign: 1 if a lower objective is better, -1 if a higher one is.
        seed: the seed of all random numbers.
        seeds: the seed of each member's training; empty if the space sets the seed, or if the application has none.
        identity: the recorded identity of the sweep.
    """

    returns = True

    def __init__(
        self,
        exploration: Exploration,
        population: int,
        places: Sequence[int],
        by: Literal["epoch", "iter"] = "epoch",
        *,
        quantile: float = 0.25,
        sign: float = 1.0,
        seed: int = 0,
        seeds: Sequence[int] = (),
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.identity = dict(identity or {})
        self._exploration = exploration
        self._population = population
        self._places = tuple(places)
        self._by = by
        self._quantile = quantile
        self._sign = sign
        self._seed = seed
        self._seeds = seeds
        self._overrides: dict[int, tuple[str, ...]] = {}  # of the members that train, or continue with a generation
        self._values: dict[int, dict[int, float]] = {}  # by member and place
        self._paused: set[int] = set()
        self._inherited: set[tuple[int, int]] = set()  # member and place
        self._done: set[int] = set()
        self._failed: dict[int, tuple[str, ...]] = {}
        self._held: dict[int, tuple[str, ...]] = {}  # of the members that a user has paused

    def ask(self, free: int) -> Sequence[Proposal]:
        count = len(self._overrides) + len(self._done) + len(self._failed) + len(self._held)
        if count < self._population:
            return [NewJob(self._first(index), rungs=self._rungs(-1)) for index in range(count, self._population)]
        reached = {num: max(self._values.get(num, {0: 0.0})) for num in self._overrides}
        at = min(reached.values(), default=0)
        if not at or any(num not in self._paused for num, place in reached.items() if place == at):
            return []
        waiting = sorted(num for num, place in reached.items() if place == at)
        rungs = self._rungs(self._places.index(at))
        heirs = {num: source for num, source in self._heirs(at).items() if (num, at) not in self._inherited}
        return [
            Promote(num, rungs, heirs.get(num), self._next(num, heirs[num], at) if num in heirs else ())
            for num in waiting
        ]

    def told(self, event: Event) -> None:
        match event:
            case Proposed(num, overrides):
                self._overrides[num] = tuple(overrides)
            case Reported(num, at, value) if num in self._overrides:
                self._values.setdefault(num, {})[at] = value
            case Paused(num, by_hand=by_hand) if num in self._overrides:
                self._paused.add(num)
                if by_hand:
                    self._held[num] = self._overrides.pop(num)
            case Inherited(num, _, at, overrides):
                self._overrides[num] = tuple(overrides)
                self._inherited.add((num, at))
            case Queued(units, _):
                for num in (num for unit in units for num in unit.nums):
                    self._paused.discard(num)
                    if num in self._held:
                        self._overrides[num] = self._held.pop(num)
            case Ended(num, "done" | "stopped" | "pruned") if num in self._overrides or num in self._held:
                self._overrides.pop(num, None)
                self._held.pop(num, None)
                self._done.add(num)
            case Ended(num, state) if num in self._overrides and state != "interrupted":
                self._failed[num] = self._overrides.pop(num)
            case Began():  # they are tried again
                self._overrides |= self._failed
                self._failed.clear()

    def beyond(self, num: int) -> Rungs | None:
        return self._rungs(self._places.index(max(self._values[num])))

    def _first(self, index: int) -> tuple[str, ...]:
        own = self._exploration.first(self._random("first", index))
        if not self._seeds:
            return own
        return (*(line for line in own if line.partition("=")[0] != SEED), f"{SEED}={self._seeds[index]}")

    def _next(self, num: int, source: int, at: int) -> tuple[str, ...]:
        return self._exploration.next(self._overrides[source], self._random("next", num, at))

    def _rungs(self, index: int) -> Rungs | None:
        """Return where members report and pause after the position with this index."""
        if index + 1 >= len(self._places):
            return None
        return Rungs((self._places[index + 1],), self._by, self._places[index + 1])

    def _heirs(self, at: int) -> dict[int, int]:
        """Return the members that continue from others at a position, each with the other one."""
        left = {*self._failed, *self._held}
        values = {num: own[at] for num, own in self._values.items() if at in own and num not in left}
        ranked = sorted(values, key=lambda num: (loss(values[num], self._sign), num))
        count = min(int(len(ranked) * self._quantile), len(ranked) // 2)
        best = [num for num in ranked[:count] if num in self._overrides and max(self._values[num]) == at]
        worst = ranked[len(ranked) - count :]
        if not best:
            return {}
        return {num: self._random("source", num, at).choice(best) for num in worst if num in self._overrides}

    def _random(self, *purpose: Any) -> Random:
        return Random(":".join(map(str, (self._seed, *purpose))))
