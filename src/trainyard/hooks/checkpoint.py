"""Checkpoint hook: saves at intervals, the best states, and the last one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from trainyard.checks import boolean, choice, integer, number
from trainyard.distributed import Strategy
from trainyard.distributed.shares import is_sharded
from trainyard.errors import ConfigError
from trainyard.files import remove
from trainyard.hooks._best_of import BestOf
from trainyard.hooks._host_copy import HostBuffers, HostCopy
from trainyard.runner import Member, Runner, checkpoint
from trainyard.runner.hook import Hook
from trainyard.runner.kept_states import KeptStates, copied

BEST = "best.pt"
_WORTH_RESERVING = 1 << 20


_Write = tuple[Path, Callable[[], None]]
"""Function that writes a checkpoint, with the directory of the checkpoint."""


@dataclass
class _Held:
    """A best state held in memory until the next write, and the names of its files."""

    copy: HostCopy
    files: set[str]


class Checkpoint(Hook):
    """Saves the complete state of the run to `checkpoints/`, in a separate thread, while training continues.

    A checkpoint that is due together with a validation is saved after the validation, so that it contains the result.
    Training waits only for a copy to a reusable buffer. On a GPU, training does not wait for the copy.

    Args:
        interval: epochs (or iterations) between two checkpoints. None is the `val_interval` of the loop, or 1 if the
            loop has no `val_interval` or uses the other unit.
        by: "epoch" or "iter"; None is the unit of the loop.
        begin: no regular checkpoint before this epoch (or iteration), from which `interval` is counted: with
            `interval=2` and `begin=3`, checkpoints are saved at 3, 5, 7, … The best state is kept in any case.
        max_keep: the number of newest checkpoints to keep; None keeps all.
        save_best: keep the state with the best objective as `best.pt`. A mapping from metrics to directions, such as
            `{"val/accuracy": "maximize"}`, also keeps the best state by each of these metrics: `best_accuracy.pt`.
        save_last: save the state at the end of the run, regardless of the interval.
        published: at the end of the training, also write the weights of the best states (of the last state if no best
            state is kept) to `published/`, with the first 8 hex digits of the file's SHA-256 in the name.
        min_seconds: the minimum number of seconds between two checkpoints; a checkpoint that is due earlier is skipped.
            A best state that is skipped is held in memory until the next checkpoint. The checkpoints of `save_last`
            and of an interruption are always written.
    """

    priority = "VERY_LOW"
    stackable = True
    own_places = own_epochs = True
    writes_checkpoints = True

    def __init__(
        self,
        interval: int | None = None,
        by: str | None = None,
        begin: int = 0,
        max_keep: int | None = 3,
        save_best: bool | Mapping[str, str] = True,
        save_last: bool = True,
        published: bool = False,
        min_seconds: float = 0.0,
    ) -> None:
        if by is not None:
            choice("by", by, ("epoch", "iter"), other="null for the loop's own unit")
        if max_keep is not None:
            max_keep = integer("max_keep", max_keep, at_least=1, other="null to keep all")
        if not isinstance(save_best, bool | Mapping):
            accepted = "true, false, or a direction for each metric, such as {val/accuracy: maximize}"
            raise ConfigError("save_best", save_best, accepted)
        if interval is not None:
            other = "null for the val_interval of the loop (1 if `by` is not the unit of the loop)"
            interval = integer("interval", interval, at_least=1, other=other)
        self.interval = interval
        self.by = by
        self.begin = integer("begin", begin, at_least=0)
        self.max_keep = max_keep
        self.save_best = save_best is not False
        self.save_last = boolean("save_last", save_last)
        self.published = boolean("published", published)
        self.min_seconds = number("min_seconds", min_seconds, at_least=0, finite=False, unit="seconds")
        self._others = BestOf(save_best if isinstance(save_best, Mapping) else {})
        self.monitors = dict.fromkeys(self._others.files, "save_best")  # the sanity check requires these metrics
        self._written_at = -math.inf
        self._held: dict[Path, list[_Held]] = {}
        self._buffers = HostBuffers()
        self._reserved = False
        self._writer = checkpoint.Writer()
        self._saved_at: dict[int, tuple[Any, ...]] = {}
        """Positions at which the regular checkpoints of members were last written, by the id of the member."""
        self._then: list[Callable[[], None]] = []
        self._strategy = Strategy()

    def before_train(self, runner: Runner) -> None:
        self._strategy = runner.strategy
        loop = runner.train_loop
        self._unit = self.by or loop.unit
        default: int = getattr(loop, "val_interval", 1) if self._unit == loop.unit else 1
        self._interval = self.interval or default
        self._begin = {id(member): _place(member) for member in runner.members}
        for index, member in enumerate(runner.members):
            if member.work_dir is not None:
                self._others.forget_missing(index, member)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if not self._reserved:
            self._reserved = True
            self._reserve(runner)
        if self._unit == "iter" and not runner.train_loop.val_due and (due := self._due(runner)):
            self._save(runner, due)

    def after_train_epoch(self, runner: Runner) -> None:
        if self._unit == "epoch" and not runner.train_loop.val_due:
            due = self._unsaved(runner, self._due(runner))  # the stage is that of the epochs of several members
            if due:
                self._save(runner, due)

    def after_val(self, runner: Runner) -> None:
        if not runner.training:
            return
        for index, member in enumerate(runner.members):
            if member.due:
                self._others.judge(index, member, step=member.iter, epoch=member.epoch)
        wanted = bool(self._then)
        regular = [*range(len(runner.members))] if wanted else self._due(runner)
        if regular or any(self._best_files(runner)):
            self._save(runner, regular, at_end=wanted)

    def save_next(self, then: Callable[[], None]) -> None:
        """Save at the end of the current validation, regardless of the interval.

        Args:
            then: called by the thread that writes, when the files are renamed and recorded.
        """
        self._then.append(then)

    def keep_one(self, directory: Path) -> None:
        """Remove all regular checkpoints of a directory except the newest checkpoint."""
        history = [entry for entry in checkpoint.read_last(directory) if not self._is_best(entry)]
        checkpoint.write_last(directory, history[-1:])
        for entry in history[:-1]:
            remove(directory / entry)

    def after_train(self, runner: Runner) -> None:
        last = self._unsaved(runner, range(len(runner.members)), since_begin=True)
        if (self.save_last or runner.interrupted) and last:
            self._save(runner, last, at_end=True)
        self._submit()
        if not runner.interrupted:
            self._publish(runner.members)
        self._writer.wait()
        self._strategy.agree(False)  # no rank continues to read before rank 0 has written

    def before_leave(self, runner: Runner, leaving: Sequence[int]) -> None:
        # A member that a command pauses or stops is interrupted: see `after_train`.
        saved = [index for index in leaving if self.save_last or runner.members[index].paused]
        if saved and (last := self._unsaved(runner, saved)):
            self._save(runner, last, at_end=True, only=saved)
        self._publish([runner.members[index] for index in leaving])

    def save_now(self, runner: Runner) -> None:
        """Save all members whose current state is not saved, regardless of the interval, and wait for the result."""
        members = [index for index, member in enumerate(runner.members) if not member.vacant]
        if unsaved := self._unsaved(runner, members):
            self._save(runner, unsaved, at_end=True, only=unsaved)
        self.wait()

    def then(self, *then: Callable[[], None]) -> None:
        """Call functions from the writing thread, after all pending writes."""
        self._submit(then=then)

    def wait(self) -> None:
        """Wait for all pending writes."""
        self._submit()
        self._writer.wait()

    def after_run(self, runner: Runner) -> None:
        self._writer.wait()  # after an error in the training, finish the pending writes

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"best": self._others.state_dict(member)} if self._others.files else {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._others.load_state_dict(state["best"], member)

    def keep(self, members: Sequence[int]) -> None:
        self._others.keep(members)

    def refill(self, runner: Runner, members: Mapping[int, Hook | None]) -> None:
        for lane in members:
            member = runner.members[lane]
            self._others.load_state_dict({}, lane)
            self._begin[id(member)] = _place(member)

    def copy_lane(self, source: int, target: int) -> None:
        """Do nothing: the best checkpoints of a member are in its own directory."""

    def _unsaved(self, runner: Runner, chosen: Iterable[int], *, since_begin: bool = False) -> list[int]:
        """Return those of the `chosen` members that were not saved at their current position and, if requested, did not
        start there."""
        members = {index: runner.members[index] for index in chosen}
        known = {
            index: (self._saved_at.get(id(member)), self._begin.get(id(member)) if since_begin else None)
            for index, member in members.items()
        }
        return [index for index, member in members.items() if _place(member) not in known[index]]

    def _due(self, runner: Runner) -> list[int]:
        """Return the members that are at the end of an `interval`-th epoch (or iteration), counted from `begin`."""
        first = runner.members[0]
        if not (runner.lanes_differ or self._is_due(first)):
            return []
        return [index for index, member in enumerate(runner.members) if self._is_due(member)]

    def _is_due(self, member: Member) -> bool:
        if self._unit == "epoch" and member.batches_done:
            return False
        done = member.iter if self._unit == "iter" else member.epoch
        return done > 0 and done >= self.begin and (done - self.begin) % self._interval == 0

    def _reserve(self, runner: Runner) -> None:
        """When the optimizer has a state, allocate the memory for the first checkpoint while training continues."""
        size = sum(parameter.nbytes for parameter in runner.model.parameters())
        if runner.work_dir is not None and size >= _WORTH_RESERVING:
            states = runner.checkpoint()
            self._writer.submit([partial(self._buffers.reserve, states)])

    def _best_files(self, runner: Runner) -> list[set[str]]:
        """Return for each member the files for which its current state is the best."""
        if runner.train_loop.val_due:
            return [set() for _ in runner.members]
        return [
            self._others.files_of(index, member.iter)
            | ({BEST} if self.save_best and member.is_best(member.iter) else set())
            for index, member in enumerate(runner.members)
        ]

    def _save(
        self, runner: Runner, regular: Collection[int], *, at_end: bool = False, only: Iterable[int] | None = None
    ) -> None:
        """Save members that have not failed: the `regular` ones, and those among all (or `only` these) that are the
        best.

        The checkpoints of `regular` ones count for `max_keep` and resuming.
        """
        if all(member.work_dir is None for member in runner.members):
            return
        later = runner.strategy.decide(not at_end and monotonic() - self._written_at < self.min_seconds)
        best = self._best_files(runner)
        chosen = [
            index
            for index in (range(len(runner.members)) if only is None else only)
            if runner.members[index].work_dir is not None and (best[index] or (index in regular and not later))
        ]
        writes: list[_Write] = []
        records: list[Callable[[], None]] = []  # after the files of all members: see `trainyard.fused.places`
        for index, state in zip(chosen, runner.checkpoint([runner.members[index] for index in chosen]), strict=True):
            member = runner.members[index]
            runner.call("before_save_checkpoint", checkpoint=state, member=member)
            if member.failed:
                continue
            self._drop(member, best[index])
            if not (runner.strategy.is_main or is_sharded(state)):
                continue
            copy = self._buffers.copy(state)
            whole = self._unit == "epoch" and member.batches_done == 0
            name = f"epoch_{member.epoch:04d}.pt" if whole else f"iter_{member.iter:08d}.pt"
            counts = index in regular
            if later:
                self._held.setdefault(member.checkpoints, []).append(_Held(copy, best[index]))
            else:
                names = [*sorted(best[index]), *([name] if counts else [])]
                kept = runner.kept_states if counts and member.paused else None
                writes.append((member.checkpoints, partial(self._save_as, member.checkpoints, copy, names, kept)))
                if counts and runner.strategy.is_main:
                    records.append(partial(self._record, member.checkpoints, name))
        if later:
            return
        then, self._then = self._then, []
        self._submit(writes, [*records, *then])
        for index in regular:
            member = runner.members[index]
            self._saved_at[id(member)] = _place(member)

    def _drop(self, member: Member, files: set[str]) -> None:
        """Drop held states for these files, because a better state replaces them."""
        for held in self._held.get(member.checkpoints, []):
            held.files -= files
            if not held.files:
                held.copy.release()
        self._held[member.checkpoints] = [held for held in self._held.get(member.checkpoints, []) if held.files]

    def _submit(self, writes: Sequence[_Write] = (), then: Sequence[Callable[[], None]] = ()) -> None:
        """Submit the held states and these, several directories at once, and then what follows from all of them.

        In a directory no checkpoint is written before the best states that it refers to.
        """
        jobs: dict[Path, list[Callable[[], None]]] = {
            directory: [partial(self._save_best, directory, held) for held in states]
            for directory, states in self._held.items()
            if states
        }
        self._held = {}
        for directory, write in writes:
            jobs.setdefault(directory, []).append(write)
        if jobs or then:
            self._writer.submit([partial(checkpoint.at_once, [*jobs.values()]), *then])
            self._written_at = monotonic()

    def _record(self, directory: Path, name: str) -> None:
        """Record a checkpoint as the last one, and remove those that are too old."""
        history = [entry for entry in checkpoint.read_last(directory) if not self._is_best(entry)]
        history = [entry for entry in history if entry != name] + [name]
        keep = history if self.max_keep is None else history[-self.max_keep :]
        checkpoint.write_last(directory, keep)
        for entry in set(history) - set(keep):
            remove(directory / entry)

    def _is_best(self, name: str) -> bool:
        return name == BEST or name in self._others.files.values()

    def _publish(self, members: Sequence[Member]) -> None:
        """Write only the weights of these members' best states, after all pending writes."""
        if self.published and self._strategy.is_main:
            wanted = [each for each in members if each.work_dir is not None and not (each.failed or each.paused)]
            self._submit([(member.checkpoints, partial(self._publish_best, member)) for member in wanted])

    def _publish_best(self, member: Member) -> None:
        directory = member.checkpoints
        best = [directory / name for name in (BEST, *self._others.files.values()) if (directory / name).exists()]
        for file in best:
            publish(file, member.directory / "published", file.stem)
        last = checkpoint.read_last(directory)
        if not best and last:
            publish(directory / last[-1], member.directory / "published", "last")

    def _save_best(self, directory: Path, held: _Held) -> None:
        self._save_as(directory, held.copy, sorted(held.files))

    def _save_as(self, directory: Path, copy: HostCopy, names: list[str], kept: KeptStates | None = None) -> None:
        """Write a state under the first of these names; the others become links to the same file."""
        copy.wait()
        if not self._strategy.save(directory / names[0], copy.state):
            checkpoint.save(directory / names[0], copy.state)
        if kept is not None:
            kept.keep(directory / names[0], copied(copy.state))
        copy.release()
        if self._strategy.is_main:
            for name in names[1:]:
                checkpoint.link(directory / names[0], directory / name)


def _place(member: Member) -> tuple[Any, ...]:
    """Return the member's position and the reason why it ends: a state is saved only once per position."""
    return member.iter, member.epoch, member.runner.train_loop.val_due, member.stop_reason


def publish(source: Path, directory: Path, stem: str) -> Path:
    """Write the evaluated weights of a checkpoint to `<directory>/<stem>-<hash>.pt`.

    The hash is the first 8 hex digits of the file's SHA-256, which `torch.hub` verifies with `check_hash=True`. Earlier
    files published under the same stem are removed. `load_from` accepts a published file.

    Returns:
        The path of the file.
    """
    state = checkpoint.read(source)
    unnamed = directory / f".{stem}.pt"
    checkpoint.save(unnamed, {"model": state.get("eval_model", state["model"])})
    with unnamed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    named = unnamed.rename(directory / f"{stem}-{digest[:8]}.pt")
    for other in set(directory.glob(f"{stem}-*.pt")) - {named}:
        other.unlink()
    return named
