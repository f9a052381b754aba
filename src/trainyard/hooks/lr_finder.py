"""Learning-rate finder hook."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from trainyard import rng_state
from trainyard.checks import integer, number
from trainyard.data.lengths import no_batches
from trainyard.optim import without_dynamo
from trainyard.rng import derive
from trainyard.runner import Runner, copy_tensors, read
from trainyard.runner.hook import Hook
from trainyard.step.group import means

log = logging.getLogger("trainyard")


class Curve:
    """The losses of one member at increasing learning rates.

    The smoothed loss is the exponential mean with bias correction. The curve ends where it exceeds `diverge` times its
    minimum, or is NaN or infinite.
    """

    def __init__(self, smoothing: float, diverge: float) -> None:
        self.smoothing = smoothing
        self.diverge = diverge
        self.lr: list[float] = []
        self.loss: list[float] = []
        self.smoothed: list[float] = []
        self.ended = False
        self._mean = 0.0

    def add(self, lr: float, loss: float) -> None:
        """Add a point, unless the curve has ended."""
        if self.ended or not math.isfinite(loss):
            self.ended = True
            return
        self._mean = self.smoothing * self._mean + (1 - self.smoothing) * loss
        smoothed = self._mean / (1 - self.smoothing ** (len(self.lr) + 1))
        self.lr.append(lr)
        self.loss.append(loss)
        self.smoothed.append(smoothed)
        least = min(self.smoothed)
        self.ended = smoothed - least > (self.diverge - 1) * abs(least)

    @property
    def suggestion(self) -> float | None:
        """The learning rate at which the smoothed loss falls fastest, as a function of the logarithm of the rate.

        Each slope is that of a line fitted to a sixth of the curve, so that the noise of single batches has little
        effect. The first tenth of the curve, where the mean includes few losses, and the part after the minimum are
        ignored. None if the loss does not fall.
        """
        begin, half = len(self.lr) // 10, max(1, len(self.lr) // 12)
        end = int(np.argmin(self.smoothed)) + 1 if self.lr else 0
        if end - begin < 2 * half + 1:
            return None
        pieces = sliding_window_view(self.smoothed[begin:end], 2 * half + 1)
        slopes = np.polynomial.polynomial.polyfit(np.arange(2 * half + 1), pieces.T, 1)[1]
        steepest = int(np.argmin(slopes))
        return self.lr[begin + half + steepest] if slopes[steepest] < 0 else None


class LRFinder(Hook):
    """Suggests a learning rate by a range test, and ends the run before training.

    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3: the learning rate grows by a
    constant factor per step, while the model trains on its training data. The suggestion is the learning rate at which
    the smoothed loss decreases fastest. After the search, weights, optimizer and random state are restored, and the run
    ends. The hook writes the curve to `lr_finder.json` and `lr_finder.png`, which are artifacts in MLflow, and records
    the suggestion as the metric `lr_finder/suggestion`.

    Args:
        start: the first learning rate of the first parameter group; other groups keep their ratio to the first group.
        end: the last learning rate of the first parameter group.
        iterations: the maximum number of optimizer steps.
        smoothing: the weight of the previous smoothed loss in each step.
        diverge: the search ends when the smoothed loss exceeds this multiple of its minimum.

    Attributes:
        curves: the curve of each member, after the search.
    """

    priority = "ABOVE_NORMAL"
    ranks = "one"
    stackable = True

    def __init__(
        self,
        start: float = 1e-6,
        end: float = 10.0,
        iterations: int = 100,
        smoothing: float = 0.9,
        diverge: float = 4.0,
    ) -> None:
        start = number("start", start, above=0)
        end = number("end", end, above=start)
        iterations = integer("iterations", iterations, at_least=10)
        self.rates: list[float] = np.geomspace(start, end, iterations).tolist()
        self.smoothing = number("smoothing", smoothing, at_least=0, below=1)
        self.diverge = number("diverge", diverge, above=1, finite=False)
        self.curves: list[Curve] = []

    def before_train(self, runner: Runner) -> None:
        states = [copy_tensors(state) for state in runner.checkpoint()]
        with rng_state.seeded(derive(runner.seed, "lr_finder")):
            self._search(runner)
        for weight in runner.step.parameters:
            weight.grad = None
        for member, state in zip(runner.members, states, strict=True):
            member.model.load_state_dict(state["model"])
            optimizer = {key: value for key, value in state["optimizer"].items() if key != "type"}
            without_dynamo.method(member.optimizer, "load_state_dict")(optimizer)
            member.load_step_state(state["step"])
        for member, curve in zip(runner.members, self.curves, strict=True):
            found = curve.suggestion
            told = _without_suggestion(curve) if found is None else f"learning rate {found:.2e} suggested"
            if found is not None:
                member.record({"lr_finder/suggestion": found}, step=runner.iter, epoch=runner.epoch)
            if member.journal.writes:
                for file in _write(curve, member.directory):
                    member.journal.artifact(file)
            log.info("%s.", told.capitalize(), extra={"member": member})
            member.stop(told)

    def _search(self, runner: Runner) -> None:
        step, groups = runner.step, runner.optimizer.param_groups
        own = [torch.as_tensor(group["lr"], dtype=torch.float64) for group in groups]
        ratios = [torch.nan_to_num(rate / own[0], nan=1.0, posinf=1.0) for rate in own]
        self.curves = [Curve(self.smoothing, self.diverge) for _ in runner.members]
        batches, accumulate = _endless(runner), getattr(step, "accumulate", 1)
        runner.model.train()
        for index, rate in enumerate(self.rates):
            for group, ratio in zip(groups, ratios, strict=True):
                lr = ratio * rate
                group["lr"] = lr if isinstance(group["lr"], torch.Tensor) else lr.item()
            position = index * accumulate
            total = len(self.rates) * accumulate
            outputs, weights = [], []
            for part in range(accumulate):
                batch = next(batches)
                outputs.append(step(batch, position + part, total))
                weights.append(step.weight(batch, outputs[-1]))
            losses = {"loss": means(outputs, weights)["loss"]}
            for curve, values in zip(self.curves, read(losses, len(self.curves)), strict=True):
                curve.add(rate, values["loss"])
            if all(curve.ended for curve in self.curves):
                return


def _without_suggestion(curve: Curve) -> str:
    """Return why a curve has no suggestion."""
    match curve.lr:
        case []:
            return "the loss is not finite before the first update of the weights"
        case [lr]:
            return f"the loss is not finite after an update with the learning rate {lr:.2e}"
        case [first, *_, last]:
            return f"no learning rate from {first:.2e} to {last:.2e} reduces the loss"
    raise AssertionError


def _endless(runner: Runner) -> Iterator[Any]:
    for epoch in count():
        read = False
        for batch in runner.loader("train").batches(epoch):
            read = True
            yield batch
        if not read:
            raise no_batches("train", epoch)


def _write(curve: Curve, folder: Path) -> list[Path]:
    """Write the curve as numbers and as a figure, and return the files."""
    from matplotlib.figure import Figure  # imported here because it is slow

    numbers, picture = folder / "lr_finder.json", folder / "lr_finder.png"
    values = {"suggestion": curve.suggestion, "lr": curve.lr, "loss": curve.loss, "smoothed": curve.smoothed}
    numbers.write_text(json.dumps(values), encoding="utf-8")
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.lr, curve.loss, color="0.75", label="loss")
    axes.plot(curve.lr, curve.smoothed, label="smoothed")
    if curve.suggestion is not None:
        axes.axvline(curve.suggestion, color="C1", linestyle="--", label=f"suggestion {curve.suggestion:.2e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    if curve.smoothed:  # an exploding loss would dominate the figure
        low, high = min(curve.smoothed), max(curve.smoothed[: int(np.argmin(curve.smoothed)) + 1])
        axes.set_ylim(low - 0.2 * (high - low) - 1e-6, high + 0.2 * (high - low) + 1e-6)
    axes.legend()
    figure.savefig(picture, dpi=120)
    return [numbers, picture]
