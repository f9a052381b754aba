"""Train metrics hook: the metrics of the validation, on training data."""

from __future__ import annotations

from collections.abc import Sequence

from trainyard.checks import integer
from trainyard.data import Loader
from trainyard.errors import ConfigError
from trainyard.hooks._second_reading import check_second_reading
from trainyard.runner import Runner, ValLoop
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

    The samples are the same in every validation and for every seed. With `overfit`, they are those of the training.

    Args:
        batches: the maximum number of batches of the training data, of all devices together; with `limit`, no more than
            the limit allows. None: all batches.

    Raises:
        ConfigError: (in the sanity check) the training data is a stream or cannot be read a second time during the
            training, or the validation loop is not derived from `ValLoop`.
    """

    priority = "LOW"  # after what replaces the evaluated weights
    stackable = True

    def __init__(self, batches: int | None = 100) -> None:
        self.batches = (
            None if batches is None else integer("batches", batches, at_least=1, other="null for all batches")
        )
        self._loader: Loader | None = None

    def sanity_check(self, runner: Runner) -> None:
        kind = type(self).__name__
        if getattr(runner.loader("train"), "is_stream", False):
            hint = "This data is a stream."
            raise ConfigError("", kind, "training data that can be read a second time, or no such hook", hint=hint)
        check_second_reading(self, runner)
        if not isinstance(runner.val_loop, ValLoop):
            hint = f"The val_loop of this run is of class {type(runner.val_loop).__name__}."
            raise ConfigError("", kind, "a val_loop that is derived from ValLoop, or no such hook", hint=hint)

    def metric_names(self, names: Sequence[str]) -> Sequence[str]:
        """Return the names of the results, derived from the names of the validation results."""
        # Behind the name of the set, which may be of two parts (val/easy).
        ends = [end for name in names for end in (name.partition("/")[2], name.rpartition("/")[2])]
        return list(dict.fromkeys(f"{PREFIX}/{end}" for end in ends))

    def before_train(self, runner: Runner) -> None:
        self._loader = None

    def before_val(self, runner: Runner) -> None:
        if not runner.training or runner.data is None:
            return
        if self._loader is None:
            self._loader = runner.training_sample(self.batches)
        # The training's draws are unchanged, and the weights are those that the validation evaluates.
        with runner.seeded("train_metrics", runner.iter), evaluated_in_training(runner):
            found = runner.val_loop.measure(runner, self._loader, PREFIX)
        if found is None:
            return
        numbers, arrays = found
        for name, value in arrays.items():
            runner.record_array(name, value)
        for member, values in zip(runner.members, read(numbers, len(runner.members)), strict=True):
            member.record(values, step=member.iter, epoch=member.epoch)
