"""Schedules as tables: a scheduler is run ahead against a stand-in optimiser, and training reads a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, SequentialLR

from trainyard.errors import ConfigError
from trainyard.schedules.part import Part, check_milestones, is_number, is_share, is_whole, positions
from trainyard.schedules.standin import StandIn, groups_of, numbers, plain

BLOCK = 1024
"""Rows grown at a time, shared out among the groups: milliseconds of work, and what a resume steps through again."""

Row = list[dict[str, Any]]
Scheduler = Callable[..., LRScheduler]


class Schedule:
    """What each parameter group must hold during each epoch, or each iteration, of a run.

    The values are those of torch's own schedulers stepped once after every unit, bit for bit. The real optimiser
    is never touched: whoever steps it writes the row into its groups first.

    Args:
        scheduler: a `torch.optim.lr_scheduler` class as a partial (`_partial_: true`), a list of them, or None for
            a learning rate that stays as it is. A list with `milestones` runs one after the other (`SequentialLR`);
            without, all of them at once (`ChainedScheduler`).
        milestones: where the second, third, … scheduler of the list takes over: whole numbers in the schedule's
            unit, or shares of the run in (0, 1).
        warmup: the length of a linear warm-up before the rest, as a whole number or a share of the run.
        warmup_factor: the share of the learning rate at which the warm-up begins, in (0, 1].
        by: the unit of a row: "epoch", "iter", or None for the unit of the training loop.

    In a scheduler's arguments, "auto" stands for a fact of the run: for `max_lr` and `base_lr` the group's own
    learning rate, for `cycle_momentum` whether the optimiser has a momentum, and for all else the length of the run in
    the schedule's unit (in a sequence, or after a warm-up: of that scheduler's part, which is counted from where it
    begins). Those of torch's arguments that count in the unit (`T_max`, `step_size`, `milestones`, …) may be shares of
    that length too.

    What lies beyond the end of the run (a milestone of `MultiStepLR`, a longer `T_max`) is allowed and never
    reached; a part of a sequence that would never begin is an error.

    Raises:
        ConfigError: for a value that cannot work; what depends on the run's length is checked by `bind`.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = Schedule(partial(torch.optim.lr_scheduler.StepLR, step_size=0.25, gamma=0.5), by="epoch")
        >>> schedule.bind(optimizer, length=100)
        >>> schedule.row(50)
        [{'lr': 0.25}]
    """

    by: Literal["epoch", "iter"] | None
    constant: bool
    """Nothing ever changes: the rows are empty, and the caller may skip them."""

    def __init__(
        self,
        scheduler: Scheduler | Sequence[Scheduler] | None = None,
        *,
        milestones: Sequence[float] | None = None,
        warmup: float = 0,
        warmup_factor: float = 1e-3,
        by: Literal["epoch", "iter"] | None = None,
    ) -> None:
        if by not in ("epoch", "iter", None):
            raise ConfigError("by", by, "epoch, iter, or null for the loop's own unit", options=("epoch", "iter"))
        if not (is_whole(warmup, 0) or is_share(warmup)):
            raise ConfigError("warmup", warmup, "a whole number of at least 0, or a share of the run in (0, 1)")
        if not (is_number(warmup_factor) and 0 < warmup_factor <= 1):
            raise ConfigError("warmup_factor", warmup_factor, "a number above 0 and of at most 1")
        if isinstance(scheduler, (list, tuple)):
            self._parts = [Part.of(f"scheduler.{number}", given) for number, given in enumerate(scheduler)]
        else:
            self._parts = [] if scheduler is None else [Part.of("scheduler", scheduler)]
        if milestones is not None:
            check_milestones("milestones", milestones, least=0)
            if len(milestones) != max(0, len(self._parts) - 1):
                accepted = f"one for each scheduler after the first: {max(0, len(self._parts) - 1)}"
                raise ConfigError("milestones", list(milestones), accepted)
        self._together = milestones is None and len(self._parts) > 1
        if warmup and self._together:
            hint = "Put a LinearLR into the list, or give milestones."
            raise ConfigError("warmup", warmup, "0 where several schedulers run at once", hint=hint)
        self._milestones = list(milestones or ())
        self._warmup = warmup
        self._warmup_factor = float(warmup_factor)
        self.by = by
        self.constant = not self._parts and not warmup
        self._length = 0  # until `bind`
        self._at = self._first = self._count = 0
        self._rows: list[Row] = []

    def bind(
        self, optimizer: Optimizer, *, length: int, direction: Literal["maximize", "minimize"] = "maximize"
    ) -> None:
        """Begins the table for one run; call it before the optimiser's own state is loaded from a checkpoint.

        Args:
            optimizer: whose groups and numbers the schedule begins from. It is read, not kept or changed.
            length: the length of the whole run, in this schedule's unit.
            direction: not read here: `Plateau` has the same signature.

        Raises:
            ConfigError: the schedule does not fit a run of this length or this optimiser.
        """
        if not is_whole(length, 1):
            raise ConfigError("length", length, "a whole number of at least 1")
        self._length = int(length)
        self._groups = groups_of(optimizer)
        self._defaults = numbers(optimizer.defaults)
        self._written: set[str] = set()
        self._restart()
        self._start = self._snapshot()

    def row(self, index: int) -> Row:
        """What each parameter group must hold during epoch or iteration `index` (0-based).

        A dict per group, holding only the keys that the schedule changes: `lr`, and `momentum` or `betas` where the
        scheduler cycles it. It belongs to the table: read it, and leave it as it is. Past the end of the run the last
        row holds. Going forward is cheap; going back to an earlier block of rows steps again from the beginning.
        """
        offset = index - self._first
        if 0 <= offset < self._count:
            return self._rows[offset]
        return self._seek(index)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on from the current block of rows; plain data.

        A scheduler whose own state is not plain data is stepped again from the beginning instead.
        """
        return {"start": self._start, "first": self._first, "at_first": self._at_first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the block of rows at which `state` was taken; call it after `bind`.

        The table is a function of the config and the run's length. Where either has changed, `state` says nothing
        about it and is passed over: the rows asked for are stepped to from the beginning.
        """
        if state["at_first"] is None or state["start"] != self._start:
            return
        saved = plain(state["at_first"])  # a copy: torch's schedulers keep what they are given
        if self._scheduler is not None:
            self._scheduler.load_state_dict(saved["scheduler"])
        for group, values in zip(self._standin.param_groups, saved["groups"], strict=True):
            group.update({key: value for key, value in values.items() if group.get(key) != value})
        self._begin(state["first"])

    def _seek(self, index: int) -> Row:
        """Grows the block of rows that holds `index`."""
        if not self._length:
            raise RuntimeError("a schedule has no rows before bind()")
        if index < 0:
            raise IndexError(f"row {index}: rows are counted from 0")
        index = min(index, self._length - 1)
        if self._first <= index < self._first + self._count:
            return self._rows[index - self._first]
        if index < self._at:
            self._restart()
        block = max(BLOCK // len(self._groups), 64)
        begin = index - index % block
        first, end = max(begin, self._at), min(begin + block, self._length)
        while self._at < first:
            self._step()
        self._begin(first)
        self._rows.append(self._read())
        while self._at < end - 1:
            self._step()
            self._rows.append(self._read())
        self._count = len(self._rows)
        return self._rows[index - first]

    def _restart(self) -> None:
        """A fresh stand-in, at row 0."""
        self._standin = StandIn(self._groups, self._defaults)
        self._scheduler = self._assemble()
        self.constant = self._scheduler is None
        self._standin.written |= self._written  # a row that has been handed out may have to be taken back
        self._written = self._standin.written
        self._standin.step()  # schedulers warn unless the optimiser is stepped before they are
        self._begin(0)

    def _begin(self, first: int) -> None:
        """A new block of rows: the stand-in holds its first."""
        self._at = self._first = first
        self._rows = []
        self._count = 0
        self._at_first = self._snapshot()

    def _step(self) -> None:
        if self._scheduler is not None:
            self._scheduler.step()
        self._at += 1

    def _read(self) -> Row:
        written = self._standin.written
        return [
            {key: group[key] for key in base if key in written}
            for base, group in zip(self._groups, self._standin.param_groups, strict=True)
        ]

    def _snapshot(self) -> dict[str, Any] | None:
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self._standin.param_groups
        ]
        try:
            scheduler = None if self._scheduler is None else plain(self._scheduler.state_dict())
            return {"length": self._length, "scheduler": scheduler, "groups": plain(groups)}
        except TypeError:
            return None

    def _assemble(self) -> LRScheduler | None:
        """The scheduler on the stand-in: one, several at once, or several in turn."""
        if self._together:
            return ChainedScheduler([part.build(self._standin, self._length) for part in self._parts])
        check_milestones("milestones", self._milestones, least=0, length=self._length)
        later = positions(self._milestones, self._length)
        if later and later[-1] >= self._length:
            hint = f"In this unit, the run has a length of {self._length}."
            raise ConfigError("milestones", self._milestones, "milestones before the end of the run", hint=hint)
        warmup = positions([self._warmup], self._length)[0]
        for limit in (*filter(None, later), self._length):
            if warmup >= limit:
                raise ConfigError("warmup", self._warmup, f"less than {limit}, so that something follows it")
        parts, begins = list(self._parts), [max(begin, warmup) for begin in (0, *later)][: len(self._parts)]
        if warmup:
            linear = partial(LinearLR, start_factor=self._warmup_factor, total_iters=warmup)
            parts, begins = [Part.of("warmup", linear), *parts], [0, *begins]
        # A share of a short run can round to nothing: such a part is left out.
        ends = [*begins, self._length][1:]
        turns = [(part, begin, end) for part, begin, end in zip(parts, begins, ends, strict=True) if begin < end]
        schedulers = [part.build(self._standin, end - begin) for part, begin, end in turns]
        if len(schedulers) < 2:
            return schedulers[0] if schedulers else None
        return SequentialLR(self._standin, schedulers, [begin for _, begin, _ in turns[1:]])
