"""Measurement of sides that take turns.

A *side* is one way to do the work: a context manager that prepares everything and yields a *turn*, which does the
work once and returns a number; lower is better. In each round every side gets a fresh process (so that effects of
one process's memory layout are not taken for speed), does the work once unmeasured, and then the sides take turns in
an order that changes; the round's number of a side is the median of its turns. Ratios are taken within a round.

Processes that do the same differ by two or three percent. Sides whose difference may be less, and that differ in
nothing that a process keeps, share one process.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

OTHER_TOOLS = ("plain PyTorch", "MMEngine", "Lightning", "ignite", "accelerate", "numpy", "copy of", "by hand")
"""How the names of other tools begin, in tables without a side named trainyard."""

Turn = Callable[[], float]
Side = Callable[[], AbstractContextManager[Turn]]

PATIENCE = 600.0  # seconds that a side may take for its preparation, or for a turn


@dataclass(frozen=True)
class Session:
    """Options of the command line that all cases use.

    Attributes:
        rounds: the number of times each comparison is made.
        quick: whether to use the smallest sizes, to see that everything works; the figures mean little.
        full: whether to measure more models and widths of stacks than usual.
        device: "cpu" or "cuda".
        folder: the folder for files, empty at the start.
        own: whether to run only the sides of this project.
        replays: the folder in which replays of searches are kept; what is there is not replayed again. None: `folder`.
    """

    rounds: int
    quick: bool
    full: bool
    device: str
    folder: Path
    replays: Path | None = None
    own: bool = False

    def fewer(self) -> Session:
        """Return a session of at most three rounds, for cases that vary little or take long."""
        return replace(self, rounds=min(self.rounds, 3))

    def once(self) -> Session:
        """Return a session of one round, for sides that take minutes."""
        return replace(self, rounds=1)

    def size(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    def say(self, text: str) -> None:
        print(f"    {text}", flush=True)


@dataclass(frozen=True)
class Comparison:
    """Ratio (or difference) of two sides, or one side by itself, and the number that it should not exceed."""

    of: str
    to: str | None = None
    reach: float | None = None
    kind: str = "ratio"  # ratio, difference or value

    def per_round(self, values: Mapping[str, list[float]]) -> list[float]:
        """Return the number of each round; an empty list if a side is missing."""
        own = values.get(self.of, [])
        if self.to is None:
            return own
        other = values.get(self.to, [])
        if self.kind == "difference":
            return [a - b for a, b in zip(own, other, strict=False)]
        return [a / b for a, b in zip(own, other, strict=False)]

    @property
    def label(self) -> str:
        sign = {"ratio": " / ", "difference": " - "}
        return self.of if self.to is None else f"{self.of}{sign[self.kind]}{self.to}"


@dataclass
class Table:
    """Result of a case: for each side one number per round.

    Attributes:
        mean: whether the rounds are repeats of something random, of which the mean with its interval is told, and not
            the median.
    """

    title: str
    unit: str
    values: dict[str, list[float]]
    failed: dict[str, str] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    mean: bool = False

    @classmethod
    def load(cls, plain: Mapping[str, Any]) -> Table:
        comparisons = [Comparison(**comparison) for comparison in plain["comparisons"]]
        return cls(
            plain["title"], plain["unit"], plain["values"], plain["failed"], comparisons, plain.get("mean", False)
        )


def compared(sides: Mapping[str, Any], of: str, reach: Mapping[str, float] | None = None) -> list[Comparison]:
    """Compare `of` with each of the other sides."""
    return [Comparison(of, to, (reach or {}).get(to)) for to in sides if to != of]


def own_sides(names: Iterable[str]) -> list[str]:
    """Return the names of this project's sides: those that begin with trainyard, or else all that are no peers."""
    names = list(names)
    ours = [name for name in names if name.startswith("trainyard")]
    return ours or [name for name in names if not name.startswith(OTHER_TOOLS)]


def take_turns(
    session: Session, sides: Mapping[str, Side], *, turns: int = 3, warm: bool = True, together: bool = False
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Run the sides, each in a process of its own, or all of them `together` in one.

    Args:
        session: has the number of rounds.
        sides: by name; they are pickled, so each is a function of a module, or a partial of one.
        turns: the turns of each side in each round.
        warm: whether the first turn in a process is discarded.

    Returns:
        For each side the numbers of the rounds, and for each failed side the reason instead.
    """
    if session.own:
        sides = {name: sides[name] for name in own_sides(sides)}
    values: dict[str, list[float]] = {name: [] for name in sides}
    failed: dict[str, str] = {}
    for number in range(session.rounds):
        left = {name: side for name, side in sides.items() if name not in failed}
        with _Workers([left] if together else [{name: side} for name, side in left.items()], failed) as workers:
            taken: dict[str, list[float]] = {name: [] for name in left}
            for turn in range(turns + warm):
                for name in random.sample(list(taken), len(taken)):
                    seconds = workers.turn(name)
                    if seconds is not None and turn >= warm:
                        taken[name].append(seconds)
        for name in taken.keys() - failed.keys():
            values[name].append(statistics.median(taken[name]))
        shown = "  ".join(f"{name} {_short(values[name][-1])}" for name in sides if name not in failed)
        session.say(f"round {number + 1} of {session.rounds}:  {shown}")
    for name, reason in failed.items():
        session.say(f"{name} failed: {reason}")
    return {name: found for name, found in values.items() if name not in failed}, failed


def take_turns_here(
    session: Session, sides: Mapping[str, Turn], *, warm: bool = True
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Run sides that start processes of their own: one turn a round; if `warm`, after one unmeasured turn."""
    if session.own:
        sides = {name: sides[name] for name in own_sides(sides)}
    values: dict[str, list[float]] = {name: [] for name in sides}
    failed: dict[str, str] = {}
    for number in range(-1 if warm else 0, session.rounds):
        for name in random.sample(list(sides), len(sides)):
            if name in failed:
                continue
            try:
                value = sides[name]()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
            else:
                if number >= 0:
                    values[name].append(value)
        if number >= 0:
            shown = "  ".join(f"{name} {_short(values[name][-1])}" for name in sides if name not in failed)
            session.say(f"round {number + 1} of {session.rounds}:  {shown}")
    for name, reason in failed.items():
        session.say(f"{name} failed: {reason}")
    return {name: found for name, found in values.items() if name not in failed}, failed


def several_figures(
    session: Session, sides: Mapping[str, Callable[[], Mapping[str, float]]]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Run sides that return several figures each, by name: one turn a round, as `take_turns_here` does.

    Returns:
        For each figure, the numbers of the rounds by side; and for each failed side the reason.
    """
    found: dict[str, dict[str, list[float]]] = {}

    def turn(side: str) -> float:
        figures = sides[side]()
        for figure, value in figures.items():
            found.setdefault(figure, {name: [] for name in sides})[side].append(value)
        return next(iter(figures.values()))

    _, failed = take_turns_here(session, {side: partial(turn, side) for side in sides}, warm=False)
    return {
        figure: {side: values for side, values in by_side.items() if values and side not in failed}
        for figure, by_side in found.items()
    }, failed


def in_a_process(function: Callable[..., Mapping[str, float]], *arguments: Any) -> Mapping[str, float]:
    """Return what a function returns in a fresh process, with the output of libraries discarded."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_silence) as pool:
        return pool.submit(function, *arguments).result()


class _Workers:
    """Prepared processes, one for each group of sides; if a side fails, its group ends, and is named in `failed`."""

    def __init__(self, groups: list[Mapping[str, Side]], failed: dict[str, str]) -> None:
        self.failed = failed
        self.pipes: dict[str, Connection] = {}
        self.processes = []
        context = multiprocessing.get_context("spawn")
        for sides in filter(None, groups):  # one at a time: libraries that load side by side disturb each other
            pipe, end = context.Pipe()
            process = context.Process(target=_serve, args=(pickle.dumps(sides), end))
            process.start()
            end.close()
            self.processes.append(process)
            self.pipes |= dict.fromkeys(sides, pipe)
            self._answer(pipe)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for pipe in set(self.pipes.values()):
            with suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(60.0)
            if process.is_alive():
                process.kill()
                process.join()

    def turn(self, name: str) -> float | None:
        """Run one turn; return None if the side has failed, now or before."""
        if name in self.failed:
            return None
        self.pipes[name].send(name)
        return self._answer(self.pipes[name])

    def _answer(self, pipe: Connection) -> float | None:
        try:
            if not pipe.poll(PATIENCE):
                raise TimeoutError(f"no answer within {PATIENCE:.0f} s")
            kind, value = pipe.recv()
        except (EOFError, TimeoutError) as error:
            kind, value = "failed", str(error) or "its process ended"
        if kind == "failed":
            self.failed |= {name: value for name, other in self.pipes.items() if other is pipe}
            return None
        return float(value)


def _serve(pickled: bytes, pipe: Connection) -> None:
    """Run the process of some sides, with the output of libraries discarded."""
    _silence()
    try:
        sides: dict[str, Side] = pickle.loads(pickled)  # here: an import error is a failure of the sides
        with ExitStack() as stack:
            turns = {name: stack.enter_context(side()) for name, side in sides.items()}
            pipe.send(("value", 0.0))
            while (name := _asked(pipe)) is not None:
                pipe.send(("value", turns[name]()))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        pipe.send(("failed", f"{reason[:200]} ({Path(last.filename).name}, line {last.lineno})"))


def _silence() -> None:
    """Discard what this process prints from now on."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(silence, stream.fileno())


def _asked(pipe: Connection) -> str | None:
    """Return the side whose turn it is; None when there are no more."""
    try:
        name: str | None = pipe.recv()
    except EOFError:
        return None  # the other end is closed
    return name


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
