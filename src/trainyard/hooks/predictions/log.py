"""Prediction log hook: figures of samples with their predictions, and of the confusion matrix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainyard.checks import boolean, choice, integer
from trainyard.data.lengths import samples_hint
from trainyard.hooks.predictions import figures
from trainyard.hooks.predictions.samples import Gathering, Shown, merged
from trainyard.hooks.predictions.token_page import page
from trainyard.runner import Member, Runner, checkpoint
from trainyard.runner.hook import Hook
from trainyard.runner.model_losses import predictions

log = logging.getLogger("trainyard")

WHICH = ("worst", "first", "random")
FOLDER = "figures"


class PredictionLog(Hook):
    """Draws samples with predictions and targets, and the confusion matrix, at validations and tests.

    The figures are `figures/<set>_<iteration>_samples.png` and `…_confusion.png`, artifacts of the run. The form of the
    samples depends on the data. Images `[C, H, W]` are drawn as a grid, points in the plane as a scatter plot (up to
    2000 points of the split), and other inputs of a classifier as a table. Numbers are drawn as a plot of predicted
    against true values. For tokens `[T]`, a `.txt` file contains the predicted tokens below the true tokens. The
    confusion matrix covers the complete split, for up to 200 classes. Class names are read from `data.spec["classes"]`
    or `data.classes`, if they are defined. `data.decode(tokens)` converts tokens to text.

    Collecting samples from batches does not wait for the device. A separate thread draws the figures, and only the next
    figures wait for this thread. A run without a directory draws nothing.

    Args:
        count: the maximum number of samples to show.
        which: `worst`, samples with the highest loss; `first`, the first samples of the split; or `random`, the same
            random samples in every validation and in every run.
        interval: draw figures at every `interval`-th validation of a training run, and at the last validation.
        confusion: draw the confusion matrix.
    """

    priority = "LOW"
    stackable = True

    def __init__(self, count: int = 25, which: str = "worst", interval: int = 1, confusion: bool = True) -> None:
        self.count = integer("count", count, at_least=1)
        self.which = choice("which", which, WHICH)
        self.interval = integer("interval", interval, at_least=1)
        self.confusion = boolean("confusion", confusion)
        self._validations = 0
        self._gatherings: dict[str, Gathering] = {}
        self._complained = False
        self._writer = checkpoint.Writer()

    def before_val_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        by_epoch = loop.unit == "epoch"
        count, end = (runner.epoch, loop.max_epochs(runner)) if by_epoch else (runner.iter, loop.max_iters(runner))
        last = runner.training and end is not None and count >= end
        due = not runner.training or (self._validations + 1) % self.interval == 0 or last
        self._begin(runner, "val", due)

    def before_test_epoch(self, runner: Runner) -> None:
        self._begin(runner, "test", True)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if self._gatherings:
            outputs = predictions(runner, "val", data_batch, outputs)
            self._gatherings[runner.val_loop.current].add(data_batch, outputs)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if self._gatherings:
            outputs = predictions(runner, "test", data_batch, outputs)
            self._gatherings[runner.test_loop.current].add(data_batch, outputs)

    def after_val_epoch(self, runner: Runner, metrics: Any) -> None:
        if runner.training:
            self._validations += 1
        self._draw(runner)

    def after_test_epoch(self, runner: Runner, metrics: Any) -> None:
        self._draw(runner)

    def after_run(self, runner: Runner) -> None:
        self._gatherings = {}
        self._writer.wait()

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._validations = state["validations"]

    def _begin(self, runner: Runner, split: str, due: bool) -> None:
        self._gatherings = {}
        if due and runner.work_dir is not None:
            members = len(runner.members) if runner.stacked else None
            self._gatherings = {
                name: Gathering(self.which, self.count, samples_hint(runner.loader(name)), members)
                for name in runner.sets(split)
            }

    def _draw(self, runner: Runner) -> None:
        gatherings, self._gatherings = self._gatherings, {}
        jobs = []
        for name, gathering in gatherings.items():
            if gathering.complaint and not self._complained:
                self._complained = True
                log.warning(
                    "hook.prediction_log draws no figures, because the predictions are %s. The hook draws class "
                    "scores, tokens and numbers that match the targets.",
                    gathering.complaint,
                )
            ranks = [part for part in runner.strategy.gather(gathering.finish()) if part]
            for member, *parts in zip(runner.members, *ranks, strict=False):
                if member.journal.writes and parts:
                    shown = merged(parts, self.which, self.count)
                    drawing = _Drawing(shown, _class_names(runner), getattr(runner.data, "decode", None), self.which)
                    place = f"{name}, epoch {member.epoch}, iteration {member.iter}"
                    jobs.append(
                        partial(self._save, member, drawing, place, f"{name.replace('/', '_')}_{member.iter:08d}")
                    )
        if jobs:
            self._writer.submit(jobs)

    def _save(self, member: Member, drawing: _Drawing, place: str, stem: str) -> None:
        """Write a member's figures; training continues if that fails."""
        try:
            folder = member.directory / FOLDER
            folder.mkdir(exist_ok=True)
            files = [drawing.samples(folder, place, f"{stem}_samples")]
            if self.confusion and drawing.shown.confusion is not None:
                files.append(drawing.matrix(folder, place, f"{stem}_confusion"))
            for file in files:
                member.journal.artifact(file, to=FOLDER)
        except Exception:  # for example a missing font, or a text that cannot be decoded
            log.warning("hook.prediction_log could not draw the figures of %s.", place, exc_info=True)


class _Drawing:
    """The figures of one member at one evaluation.

    Args:
        shown: the samples to draw.
        names: the names of the classes; numbers are used if there are none, or too few.
        decode: the function from tokens to text.
        which: how the samples were chosen.
    """

    def __init__(
        self, shown: Shown, names: Sequence[Any] | None, decode: Callable[[Any], str] | None, which: str
    ) -> None:
        self.shown = shown
        self.names = names or ()
        self.decode = decode
        self.which = which

    def samples(self, folder: Path, place: str, stem: str) -> Path:
        """Draw the samples and return the file."""
        shown = self.shown
        if shown.kind == "tokens":
            file = folder / f"{stem}.txt"
            title = f"{place}: {self._chosen()}"
            text = page(title, shown.index, shown.target, shown.predicted, shown.loss.tolist(), self.decode)
            file.write_text(text, encoding="utf-8")
            return file
        file = folder / f"{stem}.png"
        self._figure(place).savefig(file, dpi=figures.DPI)
        return file

    def matrix(self, folder: Path, place: str, stem: str) -> Path:
        """Draw the confusion matrix and return the file."""
        file, counts = folder / f"{stem}.png", self.shown.confusion
        assert counts is not None
        right, total = int(counts.trace()), int(counts.sum())
        title = f"{place}\n{right} of {total} right ({100 * right / max(1, total):.1f} %)"
        figures.confusion(counts, [self._name(c) for c in range(len(counts))], title).savefig(file, dpi=figures.DPI)
        return file

    def _figure(self, place: str) -> Any:
        shown = self.shown
        if shown.kind == "numbers":
            title = f"{place}\n{self._some()}, mean squared error {shown.loss.mean():.4g}"
            return figures.numbers(shown.predicted, shown.target, title)
        right = shown.predicted == shown.target
        if shown.points:
            assert shown.inputs is not None
            names = [self._name(c) for c in range(int(shown.predicted.max()) + 1)]
            title = f"{place}\n{self._some()}, {int((~right).sum())} of them wrong"
            return figures.points(shown.inputs, shown.predicted, shown.target, names, title)
        words = [(self._name(p), self._name(t)) for p, t in zip(shown.predicted, shown.target, strict=True)]
        assert shown.confidence is not None
        sure = [f"{100 * value:.0f} %" for value in shown.confidence]
        if shown.inputs is not None and shown.inputs.ndim == 4:
            labels = [(*pair, bool(ok)) for pair, ok in zip(words, right, strict=True)]
            notes = [f"{value}, #{number}" for value, number in zip(sure, shown.index, strict=True)]
            return figures.images(
                shown.inputs, labels, notes, f"{place}\n{self._chosen()}: predicted / true, ✗ where wrong"
            )
        features = None if shown.inputs is None else shown.inputs.reshape(len(right), -1)[:, :6]
        header = ["sample", "predicted", "true", "probability", "loss"]
        header += [] if features is None else [f"x{k}" for k in range(features.shape[1])]
        lines = [
            [str(shown.index[k]), *(figures.short(word, 20) for word in words[k]), sure[k], f"{shown.loss[k]:.3f}"]
            + ([] if features is None else [f"{value:.4g}" for value in features[k]])
            for k in range(len(right))
        ]
        return figures.table(header, lines, right.tolist(), f"{place}\n{self._chosen()}")

    def _name(self, c: int) -> str:
        return str(self.names[c]) if 0 <= c < len(self.names) else str(c)

    def _chosen(self) -> str:
        count, of = len(self.shown.index), self.shown.samples
        how = {
            "worst": f"the {count} of {of} samples with the highest loss",
            "first": f"the first {count} of {of} samples",
            "random": f"{count} of {of} samples, chosen at random",
        }
        return how[self.which]

    def _some(self) -> str:
        count, of = len(self.shown.index), self.shown.samples
        return f"{of} samples" if count == of else f"{count} of {of} samples"


def _class_names(runner: Runner) -> Sequence[Any] | None:
    data = runner.data
    found = None if data is None else data.spec.get("classes") or getattr(data, "classes", None)
    return found if isinstance(found, list | tuple) else None
