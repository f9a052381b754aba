"""Detection log hook: pictures with boxes and masks, with predictions next to true objects."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from trainyard.batch import NoTargetError, input_of, target_of
from trainyard.checks import integer, number
from trainyard.hooks.predictions.boxes import Instances, figure
from trainyard.runner import Member, Runner, checkpoint
from trainyard.runner.hook import Hook
from trainyard.runner.model_losses import predictions

if TYPE_CHECKING:
    from trainyard.hooks.predictions.figures import Array

log = logging.getLogger("trainyard")

FOLDER = "figures"


@dataclass
class _Kept:
    """The pictures of a set to draw."""

    pictures: list[Array] = field(default_factory=list)
    predicted: list[Instances] = field(default_factory=list)
    true: list[Instances | None] = field(default_factory=list)


class DetectionLog(Hook):
    """Draws the first images of each set with predicted and true boxes or masks, at validations and tests.

    Predictions and targets are a mapping for each image, as in torchvision's detectors: `boxes`, float `[n, 4]`,
    `x1, y1, x2, y2` in pixels, and optionally `labels` `[n]`, `scores` `[n]`, `masks` `[n, H, W]` or `[n, 1, H, W]`.
    For segmentation, predictions are scores `[B, C, H, W]` and targets are classes `[B, H, W]`. If a batch has no
    target, only the predictions are drawn. The images are taken from the batch before the `data_preprocessor`. Class
    names are read from `data.spec["classes"]` or `data.classes`.

    The figures are `figures/<set>_<iteration>_detections.png` and are artifacts of the run. A separate thread draws
    them. A run without a directory draws nothing.

    Args:
        count: the number of images.
        interval: draw every `interval`-th validation of a training. Every test is drawn.
        score_thr: predictions with a lower score are not drawn.
    """

    priority = "LOW"
    ranks = "main"

    def __init__(self, count: int = 8, interval: int = 1, score_thr: float = 0.3) -> None:
        self.count = integer("count", count, at_least=1)
        self.interval = integer("interval", interval, at_least=1)
        self.score_thr = number("score_thr", score_thr, at_least=0, at_most=1)
        self._validations = 0
        self._complained = False
        self._kept: dict[str, _Kept] | None = None
        self._writer = checkpoint.Writer()

    def before_val_epoch(self, runner: Runner) -> None:
        if runner.training:
            self._validations += 1
        due = not runner.training or self._validations % self.interval == 0
        self._kept = {} if due and runner.work_dir is not None else None

    def before_test_epoch(self, runner: Runner) -> None:
        self._kept = {} if runner.work_dir is not None else None

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self._take(runner.val_loop.current, data_batch, predictions(runner, "val", data_batch, outputs))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self._take(runner.test_loop.current, data_batch, predictions(runner, "test", data_batch, outputs))

    def after_val_epoch(self, runner: Runner, metrics: Any) -> None:
        self._draw(runner)

    def after_test_epoch(self, runner: Runner, metrics: Any) -> None:
        self._draw(runner)

    def after_run(self, runner: Runner) -> None:
        self._writer.wait()

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._validations = state["validations"]

    def _take(self, name: str, batch: Any, outputs: Any) -> None:
        """Keep the pictures of a batch that are still missing, on the CPU."""
        if self._kept is None:
            return
        kept = self._kept.setdefault(name, _Kept())
        room = self.count - len(kept.pictures)
        if room <= 0:
            return
        try:
            targets = target_of(batch)
        except NoTargetError:  # only the predictions are drawn
            targets = repeat(None)
        try:
            for picture, mine, true in zip(list(input_of(batch))[:room], outputs, targets, strict=False):
                kept.predicted.append(Instances.of(mine, self.score_thr))
                kept.true.append(None if true is None else Instances.of(true))
                kept.pictures.append(picture.detach().cpu().numpy())
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            self._kept = None
            if not self._complained:
                self._complained = True
                reason = error.args[0] if error.args else type(error).__name__
                log.warning(
                    "hook.detection_log draws no images, because it cannot read the predictions or targets: %s.", reason
                )

    def _draw(self, runner: Runner) -> None:
        kept, self._kept = self._kept, None
        member = runner.members[0]
        names = getattr(runner.data, "spec", {}).get("classes") or getattr(runner.data, "classes", None) or ()
        jobs = []
        for name, each in (kept or {}).items():
            if each.pictures and member.journal.writes:
                title = f"{name}, epoch {member.epoch}, iteration {member.iter}\npredicted | true"
                stem = f"{name.replace('/', '_')}_{member.iter:08d}_detections"
                jobs.append(partial(self._save, member, each, names, title, stem))
        if jobs:
            self._writer.submit(jobs)

    @staticmethod
    def _save(member: Member, kept: _Kept, names: Sequence[Any], title: str, stem: str) -> None:
        """Write the figure; training continues if that fails."""
        try:
            folder = member.directory / FOLDER
            folder.mkdir(exist_ok=True)
            file = folder / f"{stem}.png"
            figure(kept.pictures, kept.predicted, kept.true, names, title).savefig(file)
            member.journal.artifact(file, to=FOLDER)
        except Exception:  # a picture of a shape that cannot be drawn, or a missing font
            log.warning("hook.detection_log could not draw %s.", stem, exc_info=True)
