"""Logger hook: losses and results in the journal, and as lines of text."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from trainyard.checks import choice, integer, is_number, number
from trainyard.data.lengths import length_hint, of_total
from trainyard.hooks._log_phases import LogPhase, log_phases
from trainyard.hooks._time_left import TimeLeft
from trainyard.hooks._windows import EVERY, LogWindow, window_kinds
from trainyard.runner import Member, Runner
from trainyard.runner.contract import extent, length_of
from trainyard.runner.hook import Hook
from trainyard.step.group import means

log = logging.getLogger("trainyard")


class Logger(Hook):
    """Records the mean of every loss over the last `interval` iterations, the learning rate and the gauges.

    Losses and the means of a point stay on the device. They are read every half second together, or when code needs a
    value (`trainyard.track.scalars`). Only these reads synchronize with the device.

    Args:
        interval: iterations between two points in the journal.
        line_every: the minimum number of seconds between two lines of text (the journal has every point).
        window: the window of the means in a point: a number of iterations, `epoch` (the current epoch up to now) or
            `global` (the run up to now). One window for every value, or a mapping by name, such as
            `{"loss": 50, "grad_norm": "epoch"}`. None: the iterations since the last point.
        smoothing: use an exponentially weighted mean with this decay, above 0 and below 1, instead of an arithmetic
            mean. One decay for every value, or a mapping by name.
        by: the position in a line: `epoch` is the epoch and the iteration within the epoch, `iter` is the iteration of
            the run, None is the epoch and the iteration of the run.
        interval_exp_name: iterations between two lines with the name of the run; None: no lines with the name.
        val_lines: the validations with a line of text: `all`; `best`, validations with a new best result and the last
            validation; a number of seconds, also one validation per interval of this length.
    """

    priority = "BELOW_NORMAL"
    stackable = own_epochs = True

    def __init__(
        self,
        interval: int = 10,
        line_every: float = 5.0,
        window: int | str | Mapping[str, int | str] | None = None,
        smoothing: float | Mapping[str, float] | None = None,
        by: str | None = None,
        interval_exp_name: int | None = None,
        val_lines: str | float = "all",
    ) -> None:
        if by is not None:
            choice("by", by, ("epoch", "iter"), other="null for both")
        if interval_exp_name is not None:
            interval_exp_name = integer("interval_exp_name", interval_exp_name, at_least=1, other="null for never")
        if not is_number(val_lines) or val_lines < 0:
            choice("val_lines", val_lines, ("all", "best"), other="a number of seconds of at least 0")
        self.val_lines = val_lines
        self._val_line_at = -math.inf
        self.interval = integer("interval", interval, at_least=1)
        self.line_every = number("line_every", line_every, at_least=0, finite=False, unit="seconds")
        self.by = by
        self.interval_exp_name = interval_exp_name
        self._kinds = window_kinds(window, smoothing)
        self._windows: dict[str, LogWindow] = {}
        self._window: list[dict[str, Tensor]] = []
        self._weights: list[int | Tensor | None] = []  # of the batches of the window
        self._loaded: dict[int, dict[str, Any]] = {}
        self._ahead: list[int] = []  # of each member, once the training has begun
        self._phases = [LogPhase(None, 0, 0)]
        self._begins: list[tuple[int, int]] = []
        """Epochs of the values since the last point: the number of iterations finished before each epoch, and its
        number."""

    @property
    def own_places(self) -> bool:  # type: ignore[override]
        """Whether a point depends only on the member's iterations since the last point."""
        return not self._kinds

    def before_train(self, runner: Runner) -> None:
        counts = self._take_up(runner)
        self._find_phases(runner, counts)
        self._journals = [member.journal for member in runner.members]
        self._epochs, self._total = extent(runner.train_loop, runner)
        self._length = length_hint(runner.loader("train"))
        self._next_line = perf_counter() + self.line_every
        self._left = TimeLeft(runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        begin = (runner.epoch_begin, runner.epoch)
        if begin not in self._begins:
            self._begins.append(begin)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        self._window.append(outputs)
        self._weights.append(runner.step.weight(data_batch, outputs))
        at = runner.iter % self.interval
        for phase in self._phases:
            phase.count += 1
        for phase in self._phases:
            if at == phase.due:
                self._write(runner, phase)

    def after_train(self, runner: Runner) -> None:
        for phase in self._phases:
            if phase.count and not runner.interrupted:
                self._write(runner, phase)

    def before_leave(self, runner: Runner, leaving: Sequence[int]) -> None:
        for phase in self._phases:
            if phase.count and (own := tuple(lane for lane in leaving if phase.has(lane))):
                found, rates = self._means(runner, phase.count)[0], runner.learning_rates()
                runner.scalars.add(self._journals, *_counts(runner), found, rates, runner.gauges, own)
        runner.scalars.flush()

    def before_val(self, runner: Runner) -> None:
        runner.scalars.hand_over()  # the evaluation may take long

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        self._results(runner, "val")

    def after_val_loss(self, runner: Runner, losses: Mapping[str, float]) -> None:
        self._results(runner, "val_loss")

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        self._results(runner, "test")

    def _means(self, runner: Runner, count: int) -> tuple[dict[str, Tensor], dict[str, LogWindow]]:
        """Return the means of a point of the last `count` iterations, `[]` or `[K]`, and the windows after it."""
        window, windows = self._window[-count:], self._windows
        found = window[0] if len(window) == 1 else means(window, self._weights[-count:])
        if self._kinds:
            found, windows = self._windowed(found, runner.iter)
        if runner.strategy.world_size > 1:
            found = runner.strategy.mean(found)
        return found, windows

    def _windowed(self, found: dict[str, Tensor], step: int) -> tuple[dict[str, Tensor], dict[str, LogWindow]]:
        """Return the means over the configured windows, instead of those since the last point."""
        windows = dict(self._windows)
        first = step - len(self._window) + 1
        for key in found:
            kind = self._kinds.get(key, self._kinds.get(EVERY))
            if kind is not None:
                column = [
                    (self._position(at)[0], outputs[key])
                    for at, outputs in enumerate(self._window, first)
                    if key in outputs
                ]
                windows[key] = windows.get(key, kind).extended(column)
        present = {key: mean for key, window in windows.items() if (mean := window.mean()) is not None}
        return {key: present.get(key, mean) for key, mean in found.items()}, windows

    def _write(self, runner: Runner, phase: LogPhase) -> None:
        found, self._windows = self._means(runner, phase.count)
        scalars, rates = runner.scalars, runner.learning_rates()
        scalars.add(self._journals, *_counts(runner), found, rates, runner.gauges, phase.lanes)
        every, count = self.interval_exp_name, phase.count
        phase.count = 0
        over = len(self._window) - max(each.count for each in self._phases)
        del self._window[:over], self._weights[:over]
        del self._begins[:-1]
        if every is not None and runner.iter // every > (runner.iter - count) // every:
            for member in runner.members:
                log.info("Run %s.", member.info.name, extra={"member": member})
        if perf_counter() >= self._next_line:
            self._line(runner)

    def _position(self, iteration: int) -> tuple[int, int]:
        """Return the epoch of an iteration, from 0, and its number within it; the iteration is counted from 1."""
        begun = [(begin, epoch) for begin, epoch in self._begins if begin < iteration]
        begin, epoch = begun[-1] if begun else (0, 0)
        return epoch, iteration - begin

    def _ends(self, runner: Runner, member: Member) -> tuple[int | None, int | None]:
        """Return the epochs and the iterations of the member's entire training, if known."""
        if not runner.lanes_differ:
            return self._epochs, self._total
        length, of_epoch = length_of(member.loop, runner), self._length
        by_epoch = member.loop.unit == "epoch"
        if length is None or of_epoch is None:
            return (length, None) if by_epoch else (None, length)
        return (length, length * of_epoch) if by_epoch else (-(-length // of_epoch), length)

    def _place(self, runner: Runner, member: Member) -> str:
        """Return the member's position in the training as text, counted from 1."""
        epoch, index = self._position(runner.iter)
        epochs, total = self._ends(runner, member)
        if runner.lanes_differ:
            index = member.batches_done or index
        of_epochs = f"epoch {of_total(epoch + member.epoch - runner.epoch + 1, epochs)}"
        if self.by == "epoch":
            return f"{of_epochs}  iter {of_total(index, self._length)}"
        of_run = f"iter {of_total(member.iter, total)}"
        return of_run if self.by == "iter" else f"{of_epochs}  {of_run}"

    def _line(self, runner: Runner) -> None:
        now = perf_counter()
        self._next_line = now + self.line_every
        for member in runner.members:
            if member.vacant:
                continue
            _, total = self._ends(runner, member)
            left = self._left.after(runner.iter, None if total is None else total - member.iter)
            numbers = "  ".join(
                f"{key.removeprefix('train/')} {value:.4g}"
                for key, value in member.metrics.items()
                if key[:6] == "train/"
            )
            line = (self._place(runner, member), numbers, left)
            log.info("%s  %s  eta %s", *line, extra={"of_progress": True, "member": member})

    def _is_told(self, runner: Runner, split: str, member: Member, *, due: bool) -> bool:
        """Return whether a result gets a line."""
        if self.val_lines == "all" or split != "val" or not runner.training:
            return True
        loop = member.loop
        length = length_of(loop, runner)
        at_end = length is not None and (member.epoch if loop.unit == "epoch" else member.iter) >= length
        return due or at_end or member.is_best(member.iter)

    def _results(self, runner: Runner, split: str) -> None:
        now = perf_counter()
        due = is_number(self.val_lines) and now - self._val_line_at >= float(self.val_lines)
        if due:
            self._val_line_at = now
        for member in runner.members:
            if not member.due or not self._is_told(runner, split, member, due=due):
                continue
            best = "  (best)" if runner.training and split == "val" and member.is_best(member.iter) else ""
            for name, mark in ((split, best), (f"{split}_raw", "")):
                numbers = "  ".join(
                    f"{key.removeprefix(f'{name}/')} {value:.4f}"
                    for key, value in member.metrics.items()
                    if key.startswith(f"{name}/")
                )
                if numbers or name == split:
                    line = (name, member.epoch, member.iter, numbers, mark)
                    log.info("%s  epoch %d  iter %d  %s%s", *line, extra={"member": member, "best": bool(mark)})

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        first = len(self._window) - next((phase.count for phase in self._phases if phase.has(member)), 0)
        window = [{key: _of(value, member) for key, value in outputs.items()} for outputs in self._window[first:]]
        weights = [_of(weight, member) for weight in self._weights[first:]]
        if not self._kinds:
            return {"window": window, "weights": weights}
        windows = {key: it.state_dict(member) for key, it in self._windows.items()}
        begins = [list(begin) for begin in self._begins]
        return {"window": window, "weights": weights, "windows": windows, "begins": begins}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._loaded[member] = state
        if self._ahead:
            self._insert(member, state)

    def refill(self, runner: Runner, members: Mapping[int, Hook | None]) -> None:
        self._journals = [member.journal for member in runner.members]
        self._find_phases(runner, [0 if k in members else count for k, count in enumerate(self._counts())])

    def after_join(self, runner: Runner, joined: Sequence[int]) -> None:
        self._find_phases(runner, self._counts())  # those that have been resumed stand elsewhere by now

    def keep(self, members: Sequence[int]) -> None:
        index = list(members)
        counts = self._counts()
        self._ahead = [self._ahead[member] for member in index]
        self._phases = log_phases(self.interval, self._ahead, [counts[member] for member in index])
        self._journals = [self._journals[member] for member in index]
        self._window = [
            {key: value[index] if value.ndim else value for key, value in outputs.items()} for outputs in self._window
        ]
        self._weights = [_of_some(weight, index) for weight in self._weights]
        self._windows = {key: window.keep(index) for key, window in self._windows.items()}

    def _find_phases(self, runner: Runner, counts: Sequence[int]) -> None:
        self._ahead = [member.iter - runner.iter for member in runner.members]
        self._phases = log_phases(self.interval, self._ahead, counts)

    def _counts(self) -> list[int]:
        """Return the number of iterations that the next point of each member covers so far."""
        lanes = range(len(self._ahead))
        return [next(phase.count for phase in self._phases if phase.has(lane)) for lane in lanes]

    def _insert(self, member: int, state: Mapping[str, Any]) -> None:
        """Let the next point of a member include the values in its state, while the training continues."""
        own, counts = state["window"], self._counts()
        for _ in range(len(own) - len(self._window)):
            self._window.insert(0, {})
            self._weights.insert(0, None)
        for outputs, saved in zip(self._window[len(self._window) - len(own) :], own, strict=True):
            for key, value in saved.items():
                if key not in outputs:
                    outputs[key] = value.new_zeros(len(counts)).to(self._device)
                outputs[key] = outputs[key].clone()
                outputs[key][member] = value
        counts[member] = len(own)
        self._phases = log_phases(self.interval, self._ahead, counts)

    def _take_up(self, runner: Runner) -> list[int]:
        """Restore the windows of a resumed run, with the stacked values of the members; return their lengths."""
        self._device = runner.device
        counts = [len(self._loaded[k]["window"]) if k in self._loaded else 0 for k in range(len(runner.members))]
        loaded, self._loaded = self._loaded, {}
        if len(set(counts)) > 1:
            self._find_phases(runner, [0] * len(counts))
            for member, each in loaded.items():
                self._insert(member, each)
            return counts
        states = [loaded[member] for member in sorted(loaded)]
        if not states:
            return counts
        windows = [state["window"] for state in states]
        # Members of a stack have batches of one size; what they return under `num_items` is their own.
        weights = [state.get("weights", [None] * len(state["window"])) for state in states]
        self._weights = [_side_by_side(column, runner.device) for column in zip(*weights, strict=True)]
        if len(windows) == 1:
            self._window = [{key: value.to(runner.device) for key, value in outputs.items()} for outputs in windows[0]]
        elif windows:
            self._window = [
                {key: torch.stack([outputs[key] for outputs in column]).to(runner.device) for key in column[0]}
                for column in zip(*windows, strict=True)
            ]
        self._begins = [(iteration, epoch) for iteration, epoch in states[0].get("begins", [])]
        for key in states[0].get("windows", {}):
            kind = self._kinds.get(key, self._kinds.get(EVERY))
            if kind is not None:
                self._windows[key] = kind.loaded([state["windows"][key] for state in states], runner.device)
        return counts


def _of(value: Any, member: int) -> Any:
    """Return one member's number of `[K]`; for a single run the tensor is a scalar."""
    return value[member] if isinstance(value, Tensor) and value.ndim else value


def _of_some(value: Any, index: list[int]) -> Any:
    return value[index] if isinstance(value, Tensor) and value.ndim else value


def _side_by_side(values: Sequence[Any], device: torch.device) -> Any:
    """Return the values of the members as one; a plain number, or the value of a single member, is not changed."""
    if not isinstance(values[0], Tensor):
        return values[0]
    return (values[0] if len(values) == 1 else torch.stack(list(values))).to(device)


def _counts(runner: Runner) -> tuple[int | list[int], int | list[int]]:
    """Return the finished iterations and epochs; a number for each member if they differ."""
    if not runner.lanes_differ:
        return runner.iter, runner.epoch
    if len(runner.members) == 1:
        return runner.members[0].iter, runner.members[0].epoch
    return [member.iter for member in runner.members], [member.epoch for member in runner.members]
