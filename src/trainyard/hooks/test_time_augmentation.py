"""Test-time augmentation hook: predictions averaged over transformed copies of each batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from trainyard import rng_state
from trainyard.batch import target_of, with_changed_input
from trainyard.checks import boolean, choice
from trainyard.data.lengths import no_batches
from trainyard.errors import ConfigError, TrainyardError
from trainyard.hooks.image_transforms import CenterCrop, Flip, Shift
from trainyard.rng import derive
from trainyard.runner import Runner
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")

Transform = Callable[[Any], Any]

NAMED: dict[str, Transform] = {
    "horizontal_flip": Flip(),
    "vertical_flip": Flip(horizontal=False, vertical=True),
    "both_flips": Flip(vertical=True),
    "shift_left": Shift(x=-1),
    "shift_right": Shift(x=1),
    "shift_up": Shift(y=-1),
    "shift_down": Shift(y=1),
    "center_crop": CenterCrop(),
}
"""The named transforms: flips, shifts by one pixel, the middle 7/8 enlarged."""

KEY = "hook.test_time_augmentation"
MERGES = ("mean", "softmax_mean")


class TestTimeAugmentation(Hook):
    """Averages the predictions for each test batch and for transformed copies of the batch.

    Metrics and other hooks receive the mean. The hook supports predictions that are not positions in the input: a class
    or a number, but not a mask. Predictions come from the evaluated model (with an EMA, the averaged model; after
    training, the best checkpoint). The hook does not change weights or checkpoints. Each copy needs a separate forward
    pass, so the memory use is unchanged, and the time grows with the number of copies.

    `softmax_mean` is the mean of the probabilities (as in Krizhevsky et al., "ImageNet classification with deep
    convolutional neural networks", 2012, section 4.1), returned as its logarithm. Metrics that read logits therefore
    compute the correct probabilities.

    A transform receives the input of the batch from the loader, `[B, ...]`, before the model's `data_preprocessor`, and
    must not change the input in place. A random transform draws the same numbers for a batch in every evaluation and in
    every run.

    Args:
        transforms: names (see `NAMED`), or functions or modules that transform the input. The unchanged batch is always
            included.
        merge: `mean`: the mean of the predictions; `softmax_mean`; None: `softmax_mean` if targets are classes and
            predictions `[B, ..., C]` have one more axis, otherwise `mean`.
        val: also use the hook in validations, including the validations of a training run.
    """

    __test__ = False  # not a test case of pytest, despite the name
    priority = "HIGH"  # before the EMA, which may run the raw weights besides the average
    stackable = True
    own_places = True

    def __init__(
        self,
        transforms: Sequence[str | Transform] = ("horizontal_flip",),
        merge: str | None = None,
        val: bool = False,
    ) -> None:
        if not isinstance(transforms, list | tuple) or not transforms:
            raise ConfigError("transforms", transforms, "a list of at least one transform")
        if merge is not None:
            choice("merge", merge, MERGES, other="null for the method that fits the targets")
        self.transforms = [_transform(given) for given in transforms]
        self.names = ["unchanged", *(each if isinstance(each, str) else _shown(each) for each in transforms)]
        self.merge = merge
        self.val = boolean("val", val)
        self._plain: Any = None
        self._told = False

    def before_train(self, runner: Runner) -> None:
        """Run one batch before the training, so that errors appear early."""
        sets = [*runner.sets("val"), *runner.sets("test")]
        if not sets:
            return
        model = runner.eval_model
        mode = model.training
        model.eval()
        with rng_state.seeded(derive(0, "test_time_augmentation")), torch.no_grad():
            predict = self._prediction(runner)(sets[0].split("/")[0])
            loader = runner.loader(sets[0])
            batch = next(chain(loader.batches(), runner.strategy.idle(loader)), None)
            if batch is None:
                raise no_batches(sets[0])
            predict(batch)
        model.train(mode)

    def before_val(self, runner: Runner) -> None:
        if self.val:
            self._begin(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        self._begin(runner)

    def after_val_epoch(self, runner: Runner, metrics: Any) -> None:
        self._end(runner)

    def after_test_epoch(self, runner: Runner, metrics: Any) -> None:
        self._end(runner)

    def after_run(self, runner: Runner) -> None:
        self._end(runner)  # the evaluation may have been interrupted

    def _begin(self, runner: Runner) -> None:
        if not self._told:
            self._told = True
            log.info(
                "Test-time augmentation: each batch is predicted with these transforms: %s.", ", ".join(self.names)
            )
        if self._plain is None:
            # The model is not wrapped, because others save it and load into it. Only the prediction function is
            # replaced.
            augmented: Any = self._prediction(runner)
            self._plain = runner.predict_step
            runner.predict_step = augmented  # type: ignore[method-assign]

    def _end(self, runner: Runner) -> None:
        if self._plain is not None:
            runner.predict_step = self._plain  # type: ignore[method-assign]
            self._plain = None

    def _prediction(self, runner: Runner) -> Callable[..., Callable[[Any], Tensor]]:
        """Return the replacement of `runner.predict_step`."""
        for transform in self.transforms:
            if isinstance(transform, nn.Module):
                transform.to(runner.device)
        plain, stacked = runner.predict_step, runner.stacked
        return lambda *args: partial(self._predict, plain(*args), stacked)

    def _predict(self, predict: Callable[[Any], Any], stacked: bool, batch: Any) -> Tensor:
        """Return predictions for a batch, at least in single precision: `[B, ...]`, or `[K, B, ...]` for K members."""
        outputs = [predict(batch)]
        with rng_state.seeded(derive(0, "test_time_augmentation")):
            for name, transform in zip(self.names[1:], self.transforms, strict=True):
                outputs.append(predict(_transformed(batch, name, transform)))
        if not isinstance(outputs[0], Tensor) or not outputs[0].is_floating_point():
            accepted = "a model that predicts a floating-point tensor, or no such hook"
            raise ConfigError(KEY, type(self).__name__, accepted, hint=f"The predictions are: {_kind(outputs[0])}.")
        shapes = {tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__ for output in outputs}
        if len(shapes) > 1:
            found = ", ".join(f"{name}: {_kind(output)}" for name, output in zip(self.names, outputs, strict=True))
            raise ConfigError(
                f"{KEY}.transforms",
                self.names[1:],
                "transforms for which the model predicts tensors of the same shape",
                hint=f"The predictions are: {found}.",
            )
        every = torch.stack(outputs)
        every = every.to(torch.promote_types(every.dtype, torch.float32))
        if (self.merge or _fitting(batch, outputs[0], stacked)) == "mean":
            return every.mean(0)
        return every.log_softmax(-1).logsumexp(0) - math.log(len(every))


def _transform(given: Any) -> Transform:
    if isinstance(given, str) and given in NAMED:
        return NAMED[given]
    if not callable(given):
        accepted = (
            f"names ({', '.join(NAMED)}), or configs of modules (`_target_`) or functions (`_target_` and "
            "`_partial_: true`) that transform the input"
        )
        raise ConfigError("transforms", given, accepted, options=NAMED)
    return given  # type: ignore[no-any-return]


def _transformed(batch: Any, name: str, transform: Transform) -> Any:
    """Return the batch with its input transformed; a `ConfigError` of the transform names it as the config does."""
    try:
        return with_changed_input(batch, transform)
    except ConfigError as error:
        raise ConfigError(error.key, name, error.accepted, hint=error.hint) from None


def _shown(transform: Transform) -> str:
    inner = transform.func if isinstance(transform, partial) else transform
    return getattr(inner, "__name__", type(inner).__name__)


def _kind(output: Any) -> str:
    return f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def _fitting(batch: Any, outputs: Tensor, stacked: bool) -> str:
    """Return `softmax_mean` if the predictions have scores for classes, else `mean`."""
    try:
        target = target_of(batch)
    except TrainyardError:
        return "mean"
    classes = isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
    scores = classes and outputs.ndim - stacked == target.ndim + 1 and outputs.shape[-1] > 1
    return "softmax_mean" if scores else "mean"
