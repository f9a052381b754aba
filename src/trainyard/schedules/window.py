"""Window of a schedule: the part of a run in which it changes a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, isinf
from typing import Literal

from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from trainyard.errors import ConfigError
from trainyard.schedules.part import Part, check_milestones, is_share, known, positions
from trainyard.schedules.standin import StandIn

Unit = Literal["epoch", "iter"]


@dataclass(frozen=True)
class SchedulerSpan:
    """The span of a scheduler in a window: its first row, counted from the window's beginning, and its length."""

    part: Part
    begin: int
    length: float


@dataclass(frozen=True)
class ScheduleWindow:
    """The rows of a table during which one number is scheduled.

    Attributes:
        param: the number.
        first: the row at which the scheduler is created, with the first value of the scheduler.
        last: the last row to which the scheduler may step; None for the end of the run.
        stride: rows from one step to the next.
        turns: the schedulers, one after the other.
        together: whether they all run at the same time instead.
        certain: whether the length of the run is exact; otherwise, it is an estimate or unknown.
    """

    param: str
    first: int
    last: int | None
    stride: int
    turns: tuple[SchedulerSpan, ...]
    together: bool
    certain: bool = True

    def steps_into(self, row: int) -> bool:
        """Return whether the scheduler is stepped between the previous row and this one."""
        since = row - self.first
        return since > 0 and since % self.stride == 0 and (self.last is None or row <= self.last)

    def build(self, standin: StandIn) -> LRScheduler:
        """Build the scheduler on the stand-in: one, several at the same time, or several in sequence.

        Raises:
            ConfigError: torch's scheduler rejects its arguments.
        """
        within = 0 if self.certain else len(self.turns) if self.together else 1
        ends = len(self.turns) - within  # those that end before the run, whatever its length
        schedulers = [
            turn.part.build(standin, turn.length, certain=self.certain or number < ends)
            for number, turn in enumerate(self.turns)
        ]
        if len(schedulers) == 1:
            return schedulers[0]
        if self.together:
            return ChainedScheduler(schedulers)
        return SequentialLR(standin, schedulers, [turn.begin for turn in self.turns[1:]])


@dataclass(frozen=True)
class ScheduleSpec:
    """One schedule, checked as far as possible before the run is known. See `trainyard.schedules.Schedule`.

    Attributes:
        key: its key among several, for messages.
    """

    parts: tuple[Part, ...]
    milestones: tuple[float, ...]
    together: bool
    warmup: float
    warmup_factor: float
    param: str
    begin: float
    end: float | None
    by: Unit | None
    convert: bool
    key: str = ""

    @property
    def clock(self) -> Unit | None:
        """Unit in which its number may change; None for the unit of the loop."""
        return "iter" if self.convert else self.by

    @property
    def empty(self) -> bool:
        return not self.parts and not self.warmup

    def window(
        self, rows: float, *, clock: Unit, unit: Unit, epoch_length: int | None, certain: bool = True
    ) -> ScheduleWindow | None:
        """Return its window in a table of `rows` rows; None if nothing ever changes.

        Args:
            rows: the length of the run; infinite if it is unknown.
            clock: the unit of a row.
            unit: the unit of the loop.
            epoch_length: iterations in an epoch.
            certain: whether the run has this length; otherwise, it is an estimate.

        Raises:
            ConfigError: it does not fit a run of this length, or depends on a length that is unknown.
        """
        stride = scale = 1
        if clock == "iter" and (self.by or unit) == "epoch":
            if epoch_length is None:
                key = "convert_to_iter_based" if self.convert else "by"
                given, accepted = (True, "false") if self.convert else (self.by, "iter")
                hint = "The schedule converts epochs to iterations, but the training data has no length (no __len__)."
                raise ConfigError(key, given, f"{accepted} for this data", hint=hint)
            stride, scale = (1, epoch_length) if self.convert else (epoch_length, 1)
        length = rows if isinf(rows) else ceil(rows / stride)
        own = "epochs" if (self.by or unit) == "epoch" else "iterations"
        begin = _places("begin", [self.begin], scale, length)[0]
        if begin >= length:
            hint = f"The length of the run in {own} is {length / scale:.12g}."
            raise ConfigError("begin", self.begin, "a value before the end of the run", hint=hint)
        end = None
        if self.end is not None:
            end = round(self.end * known("end", self.end, length)) if is_share(self.end) else int(self.end) * scale
            exact = [value * length if is_share(value) else value * scale for value in (self.begin, self.end)]
            if exact[0] >= exact[1]:
                raise ConfigError("end", self.end, f"a value after begin={self.begin}")
            if begin >= end:  # shares of a short run can round to nothing
                return None
        turns = self._turns((length if end is None else end) - begin, scale, own)
        if not turns:
            return None
        last = end
        if end is not None and any(turn.part.make is OneCycleLR for turn in (turns if self.together else turns[-1:])):
            last = end - 1  # it counts values, not steps: one more would go beyond its end
        if end is None and not certain:
            limits = [
                begin + turn.begin + turn.part.last_step(turn.length)
                for turn in (turns if self.together else turns[-1:])
            ]
            last = None if isinf(limit := min(limits)) else int(limit)
        return ScheduleWindow(
            self.param,
            first=begin * stride,
            last=None if last is None else last * stride,
            stride=stride,
            turns=tuple(turns),
            together=self.together,
            certain=certain or end is not None,
        )

    def _turns(self, length: float, scale: int, unit: str) -> list[SchedulerSpan]:
        """Return the spans of the schedulers in a window of `length`; one `unit` of the config is `scale` units of the
        window."""
        parts = [part.scaled(scale) for part in self.parts]
        if self.together:
            return [SchedulerSpan(part, 0, length) for part in parts]
        check_milestones("milestones", self.milestones, least=0, length=length / scale)
        later = _places("milestones", self.milestones, scale, length)
        if later and later[-1] >= length:
            hint = f"The length of {self._whole} in {unit} is {length / scale:.12g}."
            accepted = f"milestones before the end of {self._whole}"
            raise ConfigError("milestones", list(self.milestones), accepted, hint=hint)
        warmup = _places("warmup", [self.warmup], scale, length)[0]
        for limit in (*filter(None, later), length):
            if warmup >= limit:
                accepted = f"less than {limit / scale:.12g}, so that steps remain after the warm-up"
                hint = f"In {unit}, this warm-up is {warmup / scale:.12g}." if is_share(self.warmup) else ""
                raise ConfigError("warmup", self.warmup, accepted, hint=hint)
        begins = [max(begin, warmup) for begin in (0, *later)][: len(parts)]
        if warmup:
            linear = partial(LinearLR, start_factor=self.warmup_factor, total_iters=warmup)
            parts, begins = [Part.of("warmup", linear), *parts], [0, *begins]
        ends = [*begins, length][1:]
        # A fraction of a short run can round to nothing: such a part is left out.
        return [
            SchedulerSpan(part, begin, end - begin)
            for part, begin, end in zip(parts, begins, ends, strict=True)
            if begin < end
        ]

    @property
    def _whole(self) -> str:
        return "the run" if self.end is None and not self.begin else "the window"


def _places(key: str, given: Sequence[float], scale: int, length: float) -> list[int]:
    return positions(key, [value if is_share(value) else value * scale for value in given], length)
