"""Schedules as tables.

A scheduler is run ahead against a stand-in optimizer, and training reads its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainyard.checks import boolean, choice, integer, number
from trainyard.errors import ConfigError, counted
from trainyard.schedules.part import Part, check_milestones, check_position, is_share
from trainyard.schedules.standin import PARAMS, entry, groups_of, joined_entry, numbers, plain, standin_of
from trainyard.schedules.window import ScheduleSpec, ScheduleWindow, Unit

BLOCK = 1024
"""Number of rows computed at a time, over all groups: this takes milliseconds, and a resumed run repeats these
steps."""

Row = list[dict[str, Any]]
Scheduler = Callable[..., LRScheduler]


class Schedule:
    """The values of each parameter group during each epoch, or each iteration, of a run.

    The values are identical to the values of a torch scheduler that is stepped after every unit. A schedule does not
    change the optimizer: the caller writes the row to the groups before each step.

    Args:
        scheduler: a `torch.optim.lr_scheduler` class as a partial (`_partial_: true`), a list of partials, or None for
            a constant learning rate. With `milestones`, the schedulers of a list run one after another
            (`SequentialLR`). Without `milestones`, all schedulers run at the same time (`ChainedScheduler`).
        milestones: the starts of the second and each later scheduler of the list: integers in the schedule's unit, or
            fractions of the run in (0, 1).
        warmup: the length of a linear warm-up before the scheduler, as an integer or a fraction of the run.
        warmup_factor: the fraction of the learning rate at which the warm-up starts, in (0, 1].
        param: the scheduled value: "lr", "momentum" (for Adam and similar optimizers, the first of the betas) or
            "weight_decay". For the last two, read this value instead of "learning rate" in this description.
        begin: the start of the schedule, in its unit or as a fraction of the run. Before the start, the value is
            constant. At the start, the scheduler is created with the current value, as if training started there.
        end: the end of the schedule: the last step of the scheduler is at this epoch or iteration, and the value is
            constant afterwards. None: the end of the run. Milestones and the warm-up count from `begin`, and fractions
            refer to the window from `begin` to `end`.
        by: the unit of a row: "epoch", "iter", or None for the unit of the training loop.
        convert_to_iter_based: lengths are given in epochs (or as fractions), and the scheduler is stepped in every
            iteration. Each length in epochs is multiplied by the length of an epoch, and the `gamma` of `ExponentialLR`
            and `CyclicLR` is replaced with a root, so that all steps of an epoch together multiply by `gamma`.

    In a scheduler's arguments, "auto" is a property of the run. For `max_lr` and `base_lr`, it is the learning rate of
    the group. For `cycle_momentum`, it is true if all groups have a momentum. For all other arguments, it is the
    length of the run in the schedule's unit. (With `begin` or `end`, it is the length of the window. In a sequence or
    after a warm-up, it is the length of the scheduler's part, counted from its start.) Arguments of torch's schedulers
    that count units (`T_max`, `step_size`, `milestones`, …) can also be fractions of this length.

    A position beyond the end of the run (a milestone of `MultiStepLR`, a longer `T_max`) is allowed and never reached.
    A schedule, or a part of a sequence, that would never start is an error.

    Raises:
        ConfigError: a value is invalid; `bind` checks values that depend on the run's length.

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
    """True if the values never change: the rows are empty, and the caller can skip them."""

    def __init__(
        self,
        scheduler: Scheduler | Sequence[Scheduler] | None = None,
        *,
        milestones: Sequence[float] | None = None,
        warmup: float = 0,
        warmup_factor: float = 1e-3,
        param: str = "lr",
        begin: float = 0,
        end: float | None = None,
        by: Unit | None = None,
        convert_to_iter_based: bool = False,
    ) -> None:
        choice("param", param, PARAMS)
        check_position("begin", begin, at_least=0)
        if end is not None:
            check_position("end", end, "null for the end of the run", at_least=1)
        if end is not None and is_share(begin) == is_share(end) and end <= begin:
            raise ConfigError("end", end, f"a value after begin={begin}")
        if boolean("convert_to_iter_based", convert_to_iter_based) and by == "iter":
            raise ConfigError(
                "convert_to_iter_based", True, "false, because `by` is iter and there are no epochs to convert"
            )
        if by is not None:
            choice("by", by, ("epoch", "iter"), other="null for the loop's own unit")
        check_position("warmup", warmup, at_least=0)
        number("warmup_factor", warmup_factor, above=0, at_most=1)
        if isinstance(scheduler, (list, tuple)):
            parts = [Part.of(f"scheduler.{number}", given) for number, given in enumerate(scheduler)]
        else:
            parts = [] if scheduler is None else [Part.of("scheduler", scheduler)]
        if milestones is not None:
            check_milestones("milestones", milestones, least=0)
            if len(milestones) != max(0, len(parts) - 1):
                later = counted(len(parts) - 1, "milestone")
                several = f"a list of {later}, one for each scheduler after the first"
                accepted = several if parts[1:] else "null, because milestones are the starts of further schedulers"
                raise ConfigError("milestones", list(milestones), accepted)
        together = milestones is None and len(parts) > 1
        if warmup and together:
            hint = "Add a LinearLR to the list, or give milestones."
            raise ConfigError("warmup", warmup, "0 if several schedulers run at the same time", hint=hint)
        plan = ScheduleSpec(
            parts=tuple(parts),
            milestones=tuple(milestones or ()),
            together=together,
            warmup=warmup,
            warmup_factor=float(warmup_factor),
            param=param,
            begin=begin,
            end=end,
            by=by,
            convert=convert_to_iter_based,
        )
        self._plans = [] if plan.empty else [plan]
        self.by = plan.clock
        self.constant = plan.empty
        self._length: float = 0  # until `bind`
        self._end: float = 0  # of the rows
        self._at = self._first = self._count = 0
        self._rows: list[Row] = []

    def bind(
        self,
        optimizer: Optimizer,
        *,
        length: float | None,
        direction: Literal["maximize", "minimize"] = "maximize",
        unit: Unit = "epoch",
        epoch_length: int | None = None,
        certain: bool = True,
    ) -> None:
        """Start the table for a run; call this method before the optimizer's state is loaded from a checkpoint.

        Args:
            optimizer: the optimizer, which is only read. Its groups and values are the initial groups and values.
            length: the length of the complete run, in this schedule's unit; None if it is unknown.
            direction: unused; `Plateau` has the same signature.
            unit: the unit of the training loop, for a schedule without a unit.
            epoch_length: the number of iterations in an epoch; used if a row is an iteration and a length is in epochs.
            certain: whether `length` is exact. If it is an estimate, values that are derived from it (`auto`, a
                fraction) reach their end there and then stay constant. All other values continue to the end of the run.

        Raises:
            ConfigError: the schedule does not match the length of the run or the optimizer, or needs an unknown length.
        """
        self._length = math.inf if length is None else integer("length", length, at_least=1)
        self._end = self._length if certain else math.inf
        self._groups = groups_of(optimizer)
        self._defaults = numbers(optimizer.defaults)
        self._windows: list[ScheduleWindow] = []
        trials: list[LRScheduler] = []
        clock = self.by or unit
        for plan in self._plans:
            try:
                window = plan.window(
                    self._length,
                    clock=clock,
                    unit=unit,
                    epoch_length=epoch_length,
                    certain=certain and length is not None,
                )
                if window is not None:
                    trials.append(self._tried(window))
                    self._windows.append(window)
            except ConfigError as error:
                raise error.under(plan.key) from None
        self._beginnings = {window.first for window in self._windows}
        self._start = self._fingerprint(trials)
        self.constant = not self._windows
        self._written: dict[str, set[str]] = {window.param: {"lr"} for window in self._windows}
        self._joined: list[dict[str, Any]] = []
        self._restart()

    def follow(self, optimizer: Optimizer) -> None:
        """Include the parameter groups that were added to the optimizer.

        The rows of these groups are computed as if the groups had existed from the beginning, with their current
        values.
        """
        self._join(groups_of(optimizer)[len(self._groups) :])

    def _join(self, added: list[dict[str, Any]]) -> None:
        if not added:
            return
        self._groups += added
        self._joined += added
        self._start = self._fingerprint([self._tried(window) for window in self._windows])
        self._restart()

    def row(self, index: int) -> Row:
        """Return the values for each parameter group during epoch or iteration `index` (0-based).

        A row has a dict per group with only the keys that the schedule changes: the key of `param`, and `momentum` or
        `betas` if a scheduler of the learning rate cycles them. The row belongs to the table, so do not change it.
        After the end of the run, the last row applies. Later rows are computed fast. For a row of an earlier block, the
        scheduler is stepped again from the beginning.
        """
        offset = index - self._first
        if 0 <= offset < self._count:
            return self._rows[offset]
        return self._seek(index)

    def ahead(self, index: int) -> Sequence[Row]:
        """Return the row of `index` and the following rows that already exist (see `row`)."""
        row = self.row(index)
        return self._rows[index - self._first :] or [row]

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a resumed run continues at the current block of rows, as plain data.

        If the state of a scheduler is not plain data, the scheduler is stepped again from the beginning instead.
        """
        state = {"start": self._start, "first": self._first, "at_first": self._at_first}
        return state | joined_entry(self._joined)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the block of rows of `state`; call this method after `bind`.

        The table is a function of the config and the run's length. If either has changed, `state` is ignored, and rows
        are computed from the beginning.
        """
        self._join(plain(state.get("joined", [])))
        if state["at_first"] is None or self._start is None or state["start"] != self._start:
            return
        saved = plain(state["at_first"])  # a copy: torch's schedulers keep the object
        self._restart()
        for index, held in enumerate(saved["schedulers"]):
            if held is not None:
                (self._schedulers[index] or self._make(index)).load_state_dict(held)
        for param, groups in saved["groups"].items():
            for group, values in zip(self._standins[param].param_groups, groups, strict=True):
                group.update({key: value for key, value in values.items() if group.get(key) != value})
        self._begin(state["first"])

    def _seek(self, index: int) -> Row:
        """Grow the block of rows that holds `index`, and return its row."""
        if not self._length:
            raise RuntimeError("a schedule has no rows before bind()")
        if index < 0:
            raise IndexError(f"row {index}: rows are counted from 0")
        index = int(min(index, self._end - 1))
        if self._first <= index < self._first + self._count:
            return self._rows[index - self._first]
        if index < self._at:
            self._restart()
        block = max(BLOCK // len(self._groups), 64)
        begin = index - index % block
        first, end = max(begin, self._at), int(min(begin + block, self._end))
        while self._at < first:
            self._step()
        self._begin(first)
        self._rows.append(self._read())
        while self._at < end - 1:
            changed = self._step()
            self._rows.append(self._read() if changed else self._rows[-1])
        self._count = len(self._rows)
        return self._rows[index - first]

    def _tried(self, window: ScheduleWindow) -> LRScheduler:
        """Build the scheduler of a window separately, so that errors appear immediately, even if the window starts
        late."""
        standin = standin_of(self._groups, self._defaults, window.param)
        scheduler = window.build(standin)
        cycled = standin.written & {"momentum", "betas"} if window.param == "lr" else None
        if cycled and any(plan.param == "momentum" for plan in self._plans):
            accepted = (
                "a scheduler that does not change the momentum (cycle_momentum: false), because another scheduler does"
            )
            raise ConfigError("scheduler", type(scheduler).__name__, accepted)
        return scheduler

    def _fingerprint(self, schedulers: Sequence[LRScheduler]) -> dict[str, Any] | None:
        """Return the inputs of the table as plain data; None if the state of a scheduler is not plain."""
        windows = [(window.param, window.first, window.last, window.stride) for window in self._windows]
        try:
            states = [plain(scheduler.state_dict()) for scheduler in schedulers]
        except TypeError:
            return None
        return {"length": self._length, "windows": windows, "schedulers": states, "groups": plain(self._groups)}

    def _restart(self) -> None:
        """Create new stand-ins at row 0."""
        self._standins = {param: standin_of(self._groups, self._defaults, param) for param in self._written}
        self._schedulers: list[LRScheduler | None] = [None] * len(self._windows)
        self._make_those_of(0)
        for param, standin in self._standins.items():
            standin.written |= self._written[param]  # a row that was returned before may have to be reverted
            self._written[param] = standin.written
        self._begin(0)

    def _make(self, number: int) -> LRScheduler:
        window = self._windows[number]
        scheduler = self._schedulers[number] = window.build(self._standins[window.param])
        self._standins[window.param].step()  # schedulers warn unless the optimizer is stepped before they are
        return scheduler

    def _make_those_of(self, row: int) -> None:
        """Create the schedulers whose windows begin at this row."""
        for index, window in enumerate(self._windows):
            if window.first == row:
                self._make(index)

    def _begin(self, first: int) -> None:
        """Begin a new block of rows; the stand-ins have the values of its first row."""
        self._at = self._first = first
        self._rows = []
        self._count = 0
        self._at_first = self._snapshot()

    def _step(self) -> bool:
        """Go to the next row; return whether it may differ from the previous one."""
        self._at += 1
        changed = False
        for window, scheduler in zip(self._windows, self._schedulers, strict=True):
            if scheduler is not None and window.steps_into(self._at):
                scheduler.step()
                changed = True
        if self._at in self._beginnings:
            self._make_those_of(self._at)
            changed = True
        return changed

    def _read(self) -> Row:
        rows: Row = [{} for _ in self._groups]
        for param, standin in self._standins.items():
            for row, base, group in zip(rows, self._groups, standin.param_groups, strict=True):
                if param == "lr":
                    row.update({key: group[key] for key in base if key in standin.written})
                else:
                    row.update(entry(base, param, group["lr"]))
        return rows

    def _snapshot(self) -> dict[str, Any] | None:
        states = [None if scheduler is None else scheduler.state_dict() for scheduler in self._schedulers]
        groups = {
            param: [{key: value for key, value in group.items() if key != "params"} for group in standin.param_groups]
            for param, standin in self._standins.items()
        }
        try:
            copied: dict[str, Any] = self._copied({"schedulers": states, "groups": groups})
            return copied
        except TypeError:
            return None

    @staticmethod
    def _copied(value: Any) -> Any:
        return plain(value)
