"""Train metrics hook: the metrics of the validation, on training data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from trainyard.checks import integer
from trainyard.errors import ConfigError
from trainyard.runner import Runner
from trainyard.runner.hook import Hook
from trainyard.runner.member import read
from trainyard.runner.switching import evaluated_in_training

PREFIX = "train_eval"
"""Prefix of the names of the results."""


class TrainMetrics(Hook):
    """Evaluates the model on training data before each validation, and records `train_eval/accuracy` and so on.

    The metrics and the computation are the same as in the validation: with the current weights (with an EMA, the
    averaged weights), in evaluation mode, and without an effect on the training. The difference from the validation
    results shows overfitting. (`train/loss` is computed while the weights change.)

    Args:
        batches: the number of batches of the training data. The samples are the same in every validation and for every
            seed. None: all batches.

    Raises:
        ConfigError: the training data is a stream, which cannot be read twice.
    """

    priority = "LOW"  # after what replaces the evaluated weights
    stackable = True

    def __init__(self, batches: int | None = 100) -> None:
        self.batches = (
            None if batches is None else integer("batches", batches, at_least=1, other="null for all batches")
        )

    def sanity_check(self, runner: Runner) -> None:
        """Check that the training data can be read a second time."""
        loader = runner.loader("train")
        if getattr(getattr(loader, "loader", loader), "is_stream", False):
            raise ConfigError(
                "data",
                type(runner.data).__name__,
                "data that hook.train_metrics can read a second time, but this data is a stream",
            )

    def metric_names(self, names: Sequence[str]) -> Sequence[str]:
        """Return the names of the results, derived from the names of the validation results."""
        # Behind the name of the set, which may be of two parts (val/easy).
        ends = [end for name in names for end in (name.partition("/")[2], name.rpartition("/")[2])]
        return list(dict.fromkeys(f"{PREFIX}/{end}" for end in ends))

    def before_val(self, runner: Runner) -> None:
        if not runner.training or runner.data is None:
            return
        # The training's draws are unchanged, and the weights are those that the validation evaluates.
        with runner.seeded("train_metrics", runner.iter), evaluated_in_training(runner):
            # A loader of its own: its samples are the same at each time, and for all runs and members.
            own = runner.data.loader("train", seed=0, device=runner.device)
            loader = runner.strategy.loader(own, "val")
            batches = islice(loader.batches(), self.batches)
            numbers, arrays = runner.val_loop.measure(runner, PREFIX, batches)
            found = read(numbers, len(runner.members))
        for name, value in arrays.items():
            runner.record_array(name, value)
        for member, values in zip(runner.members, found, strict=True):
            member.record(values, step=member.iter, epoch=member.epoch)
