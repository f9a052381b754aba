"""Checkpoints at intervals, the best one, and the last."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from trainyard.errors import ConfigError
from trainyard.hooks.hook import Hook
from trainyard.runner import Member, Runner, checkpoint, copy_tensors


class Checkpoint(Hook):
    """Saves the whole state of the run into `checkpoints/`, from a thread of its own, so that training goes on.

    A checkpoint that falls together with a validation is saved after it, so that it holds the result.

    Args:
        interval: epochs (or iterations) between two checkpoints.
        by: "epoch" or "iter"; None is the unit of the loop.
        max_keep: how many of them to keep, the newest; None keeps all.
        save_best: keep the state with the best objective as `best.pt`.
        save_last: save the state at the end of the run whatever the interval.
        min_seconds: a checkpoint that falls due sooner than this after the one before it is left out, so that short
            epochs are not spent on writing; until the next one, the best state is held in memory. What comes at the end
            of a run is written whatever the time.
    """

    priority = "VERY_LOW"
    stackable = True

    def __init__(
        self,
        interval: int = 1,
        by: str | None = None,
        max_keep: int | None = 3,
        save_best: bool = True,
        save_last: bool = True,
        min_seconds: float = 0.0,
    ) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ConfigError("interval", interval, "a whole number of at least 1")
        if by not in (None, "epoch", "iter"):
            raise ConfigError("by", by, "epoch, iter or null for the loop's own unit", options=("epoch", "iter"))
        if max_keep is not None and (not isinstance(max_keep, int) or max_keep < 1):
            raise ConfigError("max_keep", max_keep, "a whole number of at least 1, or null to keep all")
        if not min_seconds >= 0:
            raise ConfigError("min_seconds", min_seconds, "a number of seconds, at least 0")
        self.interval = interval
        self.by = by
        self.max_keep = max_keep
        self.save_best = save_best
        self.save_last = save_last
        self.min_seconds = min_seconds
        self._written_at = -math.inf
        self._held: dict[Path, Callable[[], None]] = {}
        self._writer = checkpoint.Writer()
        self._saved_at: tuple[int, bool] | None = None

    def before_train(self, runner: Runner) -> None:
        self._unit = self.by or runner.train_loop.unit
        self._begin = (runner.iter, runner.train_loop.val_due)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if self._unit == "iter" and self._due(runner) and not runner.train_loop.val_due:
            self._save(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        if self._unit == "epoch" and self._due(runner) and not runner.train_loop.val_due:
            self._save(runner)

    def after_val(self, runner: Runner) -> None:
        if not runner.training:
            return
        best = self.save_best and any(member.is_best(runner.iter) for member in runner.members)
        regular = self._due(runner)
        if best or regular:
            self._save(runner, regular=regular)

    def after_train(self, runner: Runner) -> None:
        here = (runner.iter, runner.train_loop.val_due)
        if (self.save_last or runner.interrupted) and here not in (self._saved_at, self._begin):
            self._save(runner, at_end=True)
        self._submit([])
        self._writer.wait()

    def before_leave(self, runner: Runner, leaving: Sequence[int]) -> None:
        saved = (runner.iter, runner.train_loop.val_due) == self._saved_at
        if self.save_last and not saved:
            self._save(runner, at_end=True, only=leaving)

    def after_run(self, runner: Runner) -> None:
        self._writer.wait()  # where an error ended the training, what was being written is finished all the same

    def _due(self, runner: Runner) -> bool:
        """Whether this is the end of every `interval`-th epoch, or iteration."""
        if self._unit == "iter":
            return runner.iter % self.interval == 0
        return runner.epoch % self.interval == 0 and self._between_epochs(runner)

    @staticmethod
    def _between_epochs(runner: Runner) -> bool:
        return runner.iter == runner.epoch * len(runner.loader("train"))

    def _save(
        self, runner: Runner, *, regular: bool = True, at_end: bool = False, only: Sequence[int] | None = None
    ) -> None:
        """Save every member (or `only` these) that has not failed; `regular` ones count for `max_keep` and resuming."""
        if runner.work_dir is None:
            return
        later = not at_end and monotonic() - self._written_at < self.min_seconds
        if later and not (self.save_best and any(member.is_best(runner.iter) for member in runner.members)):
            return
        whole = self._unit == "epoch" and self._between_epochs(runner)
        name = f"epoch_{runner.epoch:04d}.pt" if whole else f"iter_{runner.iter:08d}.pt"
        judged = self.save_best and not runner.train_loop.val_due
        best = {index for index, member in enumerate(runner.members) if judged and member.is_best(runner.iter)}
        chosen = range(len(runner.members)) if only is None else only
        if later or not regular:
            chosen = [index for index in chosen if index in best]
        jobs: list[Callable[[], None]] = []
        for index, state in zip(chosen, runner.checkpoint(chosen), strict=True):
            solo, member = runner.solos[index], runner.members[index]
            solo.call("before_save_checkpoint", checkpoint=state)
            if member.failed:
                continue
            if index in best:
                self._held.pop(member.checkpoints, None)
            if not later:
                jobs.append(partial(self._write, member, name, copy_tensors(state), regular, index in best))
            else:
                self._held[member.checkpoints] = partial(self._write, member, name, copy_tensors(state), False, True)
        if later:
            return
        self._submit(jobs)
        if regular and only is None:
            self._saved_at = (runner.iter, runner.train_loop.val_due)

    def _submit(self, jobs: list[Callable[[], None]]) -> None:
        """Hand to the writer what was held back, and then this: no checkpoint is newer than the best that it knows."""
        held, self._held = list(self._held.values()), {}
        if held or jobs:
            self._writer.submit([*held, *jobs])
            self._written_at = monotonic()

    def _write(self, member: Member, name: str, state: dict[str, Any], regular: bool, best: bool) -> None:
        directory = member.checkpoints
        if regular:
            checkpoint.save(directory / name, state)
            history = [entry for entry in checkpoint.read_last(directory) if entry not in (name, "best.pt")] + [name]
            keep = history if self.max_keep is None else history[-self.max_keep :]
            checkpoint.write_last(directory, keep)
            for entry in set(history) - set(keep):
                (directory / entry).unlink(missing_ok=True)
        if best and regular:
            _link(directory / name, directory / "best.pt")
        elif best:
            checkpoint.save(directory / "best.pt", state)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, replacing what has that name; it is not written twice."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        temporary.write_bytes(source.read_bytes())
    temporary.replace(target)
