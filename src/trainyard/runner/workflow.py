"""Workflow: turns of training alternating with turns of validation losses, as in MMCV."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainyard.batch import ITEMS, samples
from trainyard.checks import choice, is_integer
from trainyard.data import Batch, Loader
from trainyard.data.lengths import first_batch, length_hint, no_batches
from trainyard.errors import ConfigError
from trainyard.models import call, total_loss
from trainyard.runner.batch_checks import in_range
from trainyard.runner.member import read
from trainyard.step.group import items_of
from trainyard.step.step import Step

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner

Entries = Sequence[Sequence[Any]]
Places = dict[str, tuple[int, int]]
"""The position in the data of each validation set: the epoch, and the number of completed batches in it."""


class Workflow:
    """A cycle of turns: `[["train", 2], ["val", 1]]` means two epochs (or iterations) of training, then one of
    validation.

    A validation turn does not count towards the length of a run. If the run ends within a cycle, the rest of the
    cycle's validation still follows, as in MMCV.

    Args:
        entries: pairs of "train" or "val" and a number of epochs (or iterations).

    Raises:
        ConfigError: the value is something else, or there is no training turn.
    """

    def __init__(self, entries: Entries) -> None:
        accepted = (
            "null, or a list of pairs [train, n] or [val, n], with integers n of at least 1 and at least one [train, n]"
        )
        if not isinstance(entries, list | tuple) or not all(_is_pair(entry) for entry in entries):
            raise ConfigError("workflow", entries, accepted)
        for mode, _ in entries:
            choice("workflow", mode, ("train", "val"))
        self.entries = [(str(mode), int(count)) for mode, count in entries]
        self._gaps: dict[int, int] = {}
        self._trained = 0
        for mode, count in self.entries:
            if mode == "train":
                self._trained += count
            else:
                self._gaps[self._trained] = self._gaps.get(self._trained, 0) + count
        if not self._trained:
            raise ConfigError("workflow", entries, accepted)

    def __bool__(self) -> bool:
        """Return whether there is any validation turn."""
        return bool(self._gaps)

    def turn(self, count: int, length: int) -> int:
        """Return the validation epochs (or batches) after epoch (or iteration) `count` in a run of `length`."""
        place = count % self._trained
        if count == 0:
            return self._gaps.get(0, 0)
        if count == length:
            first = place or self._trained
            return sum(units for offset, units in self._gaps.items() if offset >= first)
        if place:
            return self._gaps.get(place, 0)
        return self._gaps.get(self._trained, 0) + self._gaps.get(0, 0)

    def before(self, count: int) -> int:
        """Return the validation epochs (or batches) of all turns before the one after epoch (or iteration) `count`."""
        cycles, place = divmod(count, self._trained)
        if place == 0 and cycles:
            cycles, place = cycles - 1, self._trained
        whole = cycles * sum(self._gaps.values())
        return whole + sum(units for offset, units in self._gaps.items() if offset < place)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2 and is_integer(entry[1], at_least=1)


def val_losses(runner: Runner, unit: str, first: int, units: int, places: Places) -> bool:
    """Run validation data through the trained model in evaluation mode, and record the means of its losses.

    The weights are those of the training, not their average. Each loss is recorded as `val_loss/<key>`, for a set
    `val/easy` as `val_loss/easy/<key>`: the mean over batches, weighted by the `num_items` that the model returns in
    addition to its losses, otherwise by their number of samples.

    Args:
        runner: the Runner of a training.
        unit: "epoch" for passes over every set; "iter" for batches of every set, which starts again after its last one.
        first: the number of units before this turn, which continues where the last one ended.
        units: the number of units of this turn.
        places: the position at which the previous turn ended, in batches; updated when this turn has finished.

    Returns:
        Whether the turn has finished; False if the run was interrupted.
    """
    before_iter, after_iter = runner.stage("before_val_loss_iter"), runner.stage("after_val_loss_iter")
    losses_of, forward = _losses_of(runner), runner.step.precision.forward
    means: dict[str, Tensor] = {}
    ends: Places = {}
    runner.model.eval()
    runner.strategy.before_evaluation(runner.model)
    runner.call("before_val_loss")
    for name in runner.sets("val"):
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        with torch.no_grad():
            batches: Iterator[Batch]
            if unit == "epoch":
                batches = chain.from_iterable(runner.loader(name).batches(first + index) for index in range(units))
            else:
                place = places[name] if name in places else _stated_place(runner.loader(name), first)
                batches = _batches(runner, name, units, place, ends)
            for index, batch in enumerate(batches):
                for hook in before_iter:
                    hook(runner, index, batch)
                losses = forward(losses_of, batch)
                loss = total_loss(losses, stacked=runner.stacked)
                outputs = Step.outputs(losses, loss)
                size = items_of({ITEMS: samples(batch)} | losses, loss)
                assert size is not None
                for key, value in outputs.items():
                    if key != ITEMS:  # a mean over no item is no number
                        sums[key] = torch.where(size > 0, value * size, 0) + sums.get(key, 0)
                        counts[key] = size + counts.get(key, 0)
                for hook in after_iter:
                    hook(runner, index, batch, outputs)
                if runner.interrupted:
                    return False
        prefix = name.replace("val", "val_loss", 1)
        sums, counts = _of_all_ranks(runner, sums, counts)
        if not counts:
            raise no_batches(name)
        means |= {f"{prefix}/{key}": total / counts[key] for key, total in sums.items()}
    results = read(means, len(runner.members))
    for member, values in zip(runner.members, results, strict=True):
        member.record(values, step=member.iter, epoch=member.epoch)
    places.update(ends)
    runner.call("after_val_loss", losses=results[0] if len(results) == 1 else results)
    return True


def sanity_check(runner: Runner, entries: Entries) -> None:
    """Run a batch of each validation set through the model as a validation turn does, and discard the result.

    Raises:
        ConfigError: there is no validation data, the model has losses for several optimizers, or its forward pass needs
            all ranks.
    """
    if not runner.has_split("val"):
        raise ConfigError("loop.workflow", entries, "null or [[train, 1]], because the data has no validation set")
    if hasattr(runner.model, "train_steps"):
        accepted = "null or [[train, 1]], because the model trains with several optimizers"
        raise ConfigError("loop.workflow", entries, accepted)
    if runner.strategy.gathers:
        accepted = "null or [[train, 1]], because every forward pass of this strategy needs all ranks"
        raise ConfigError("loop.workflow", entries, accepted)
    runner.model.eval()
    with torch.no_grad():
        for name in runner.sets("val"):
            with in_range(runner, name):
                losses = runner.step.precision.forward(_losses_of(runner), first_batch(runner.loader(name), name))
            total_loss(losses, stacked=runner.stacked)


def _losses_of(runner: Runner) -> Callable[[Any], dict[str, Any]]:
    """Return the function from a batch to its losses; the members of a stack share a validation batch."""
    model: Any = runner.model
    if hasattr(model, "shared_train_step"):
        return model.shared_train_step  # type: ignore[no-any-return]
    return getattr(model, "train_step", partial(call, model, mode="loss"))


def _of_all_ranks(runner: Runner, *numbers: dict[str, Tensor]) -> Sequence[dict[str, Tensor]]:
    """Sum each of these over all ranks."""
    if runner.strategy.world_size == 1:
        return numbers
    totals: list[dict[str, Tensor]] = [{} for _ in numbers]
    own = [{key: value.cpu() for key, value in each.items()} for each in numbers]
    for of_rank in runner.strategy.gather(own):
        for total, each in zip(totals, of_rank, strict=True):
            total |= {key: value + total.get(key, 0) for key, value in each.items()}
    return totals


def _stated_place(loader: Loader, first: int) -> tuple[int, int]:
    """Return the position after `first` batches from the stated length, as counted by earlier versions."""
    return divmod(first, length_hint(loader) or sys.maxsize)


def _batches(runner: Runner, name: str, units: int, place: tuple[int, int], ends: Places) -> Iterator[Batch]:
    """Yield this rank's part of the `units` batches from `place` on, and store the position after them in `ends`.

    Raises:
        TrainyardError: the set has no batch.
    """
    loader: Any = runner.loader(name)
    rank, ranks = runner.strategy.rank, runner.strategy.world_size
    epoch, start = place
    while units:
        own, taken = len(range((rank - start) % ranks, units, ranks)), 0
        for batch in islice(loader.batches(epoch, start), own):
            taken += 1
            yield batch
        # A rank that has got fewer than its turns has come to the end of the set, and knows how many batches all had.
        served = None if taken == own else taken if ranks == 1 else loader.served
        left = [count for count in runner.strategy.gather(served) if count is not None]
        if not left:
            ends[name] = (epoch, start + units)
            return
        if not start + left[0]:
            raise no_batches(name)
        units -= left[0]
        epoch, start = epoch + 1, 0
    ends[name] = (epoch, start)
