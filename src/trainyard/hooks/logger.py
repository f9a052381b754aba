"""Losses and results into the journal, and as lines of text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from trainyard.errors import ConfigError
from trainyard.hooks.hook import Hook
from trainyard.runner import Runner, read

log = logging.getLogger("trainyard")


class Logger(Hook):
    """Journals the mean of every loss over the last `interval` iterations, the learning rate and the gauges.

    Between two such points losses stay on the device: reading them is the only thing here that synchronises.

    Args:
        interval: iterations between two points in the journal.
        line_every: seconds between two lines of text at least (the journal has every point).
    """

    priority = "BELOW_NORMAL"
    stackable = True

    def __init__(self, interval: int = 10, line_every: float = 5.0) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ConfigError("interval", interval, "a whole number of at least 1")
        if not isinstance(line_every, int | float) or line_every < 0:
            raise ConfigError("line_every", line_every, "a number of seconds, at least 0")
        self.interval = interval
        self.line_every = line_every
        self._window: list[dict[str, Tensor]] = []
        self._loaded: dict[int, list[dict[str, Tensor]]] = {}

    def before_train(self, runner: Runner) -> None:
        self._take_up(runner)
        self._total = runner.train_loop.max_iters(runner)
        self._epochs = runner.train_loop.max_epochs(runner)
        self._begin = self._last_line = perf_counter()
        self._begin_iter = runner.iter

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        self._window.append(outputs)
        if runner.iter % self.interval == 0:
            self._write(runner)

    def after_train(self, runner: Runner) -> None:
        if self._window and not runner.interrupted:
            self._write(runner)

    def before_leave(self, runner: Runner, leaving: Sequence[int]) -> None:
        if self._window:
            self._record(runner, leaving)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        self._results(runner, "val")

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        self._results(runner, "test")

    def _record(self, runner: Runner, members: Iterable[int]) -> None:
        means = {f"train/{key}": value for key, value in _means(self._window).items()}
        common = {f"train/{name}": gauge() for name, gauge in runner.gauges.items()}
        numbers, rates = read(means, len(runner.members)), runner.learning_rates()
        for index in members:
            values = numbers[index] | {"train/lr": rates[index]} | common
            runner.members[index].record(values, step=runner.iter, epoch=runner.epoch)

    def _write(self, runner: Runner) -> None:
        self._record(runner, range(len(runner.members)))
        self._window.clear()
        now = perf_counter()
        if now - self._last_line >= self.line_every:
            self._last_line = now
            self._line(runner, now)

    def _line(self, runner: Runner, now: float) -> None:
        pace = (now - self._begin) / (runner.iter - self._begin_iter)
        left = timedelta(seconds=round(pace * (self._total - runner.iter)))
        epoch = min(runner.epoch + 1, self._epochs)
        for member in runner.members:
            numbers = "  ".join(
                f"{key.removeprefix('train/')} {value:.4g}"
                for key, value in member.metrics.items()
                if key[:6] == "train/"
            )
            log.info(
                "epoch %d/%d  iter %d/%d  %s  eta %s", epoch, self._epochs, runner.iter, self._total, numbers, left,
                extra={"of_progress": True, "member": member},
            )  # fmt: skip

    def _results(self, runner: Runner, split: str) -> None:
        for member in runner.members:
            numbers = "  ".join(
                f"{key.removeprefix(f'{split}/')} {value:.4f}"
                for key, value in member.metrics.items()
                if key.startswith(f"{split}/")
            )
            best = "  (best)" if runner.training and split == "val" and member.is_best(runner.iter) else ""
            line = (split, runner.epoch, runner.iter, numbers, best)
            log.info("%s  epoch %d  iter %d  %s%s", *line, extra={"member": member})

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"window": [{key: _of(value, member) for key, value in outputs.items()} for outputs in self._window]}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._loaded[member] = state["window"]

    def keep(self, members: Sequence[int]) -> None:
        index = list(members)
        self._window = [
            {key: value[index] if value.ndim else value for key, value in outputs.items()} for outputs in self._window
        ]

    def _take_up(self, runner: Runner) -> None:
        """The window of a resumed run: that of each member, side by side."""
        windows = [self._loaded[member] for member in sorted(self._loaded)]
        self._loaded = {}
        if len(windows) == 1:
            self._window = [{key: value.to(runner.device) for key, value in outputs.items()} for outputs in windows[0]]
        elif windows:
            self._window = [
                {key: torch.stack([outputs[key] for outputs in column]).to(runner.device) for key in column[0]}
                for column in zip(*windows, strict=True)
            ]


def _of(value: Tensor, member: int) -> Tensor:
    """One member's number of `[K]`; a solo run's is a scalar."""
    return value[member] if value.ndim else value


def _means(window: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each number over the iterations that have it (a gradient norm comes only with a step)."""
    columns: dict[str, list[Tensor]] = {}
    for outputs in window:
        for key, value in outputs.items():
            columns.setdefault(key, []).append(value)
    return {key: torch.stack(values).mean(0) for key, values in columns.items()}
