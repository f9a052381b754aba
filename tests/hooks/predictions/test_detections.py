"""Pictures with boxes and masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trainyard.data import pseudo_collate
from trainyard.errors import ConfigError
from trainyard.hooks import DetectionLog
from trainyard.hooks.predictions.boxes import Instances, figure
from trainyard.models import BaseModel, DataPreprocessor
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.track import read


class Squares(Dataset[Any]):
    """Pictures of different sizes with a bright square, its box and its mask."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        picture = torch.zeros(1, 20 + index, 30)
        picture[:, 4:12, 6:16] = 1
        target = {
            "boxes": torch.tensor([[6.0, 4.0, 16.0, 12.0]]),
            "labels": torch.tensor([1]),
            "masks": picture > 0.5,
        }
        return picture, target


class Detector(BaseModel):
    def __init__(self) -> None:
        super().__init__(DataPreprocessor())
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, pictures: Any, targets: Any = None, mode: str = "tensor") -> Any:
        if mode == "loss":
            return {"loss": (pictures.mean() * self.scale - 1).square()}
        box = {"boxes": torch.tensor([[5.0, 3.0, 15.0, 13.0], [0.0, 0.0, 3.0, 3.0]]), "labels": torch.tensor([1, 0])}
        return [box | {"scores": torch.tensor([0.9, 0.1])} for _ in pictures]


class Count:
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(len(data_samples))  # type: ignore[attr-defined]

    def compute_metrics(self, results: Any) -> dict[str, float]:
        return {"count": float(sum(results))}


def run(
    folder: Path, hook: DetectionLog, model: nn.Module | None = None, *, epochs: int = 2, collate: Any = pseudo_collate
) -> Runner:
    loader = DataLoader(Squares(), 2, collate_fn=collate)
    runner = Runner(
        model or Detector(),
        {"train": loader, "val": loader, "spec": {"classes": ["none", "square"]}},
        partial(torch.optim.SGD, lr=0.1),
        hooks={"log": hook},
        metrics={"count": Count()},
        loop=EpochBasedTrainLoop(epochs),
        objective="val/count",
        work_dir=folder,
        device="cpu",
    )
    runner.train()
    return runner


def test_validations_leave_figures_that_are_artifacts(tmp_path: Path) -> None:
    runner = run(tmp_path, DetectionLog(count=3, interval=2), epochs=4)
    names = ["val_00000006_detections.png", "val_00000012_detections.png"]
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == names
    found = [record["path"] for record, _ in read(tmp_path / "metrics.jsonl") if record["kind"] == "artifact"]
    assert found == [f"figures/{name}" for name in names]
    assert runner.members[0].metrics["val/count"] == 5


@pytest.mark.parametrize("with_scores", [True, False])
def test_what_is_drawn(with_scores: bool) -> None:
    mask = torch.zeros(1, 1, 20, 30)
    mask[..., 10:, :] = 1
    given = {"boxes": torch.tensor([[3.0, 2.0, 27.0, 18.0]]), "labels": torch.tensor([0]), "masks": mask}
    seen = Instances.of(given | ({"scores": torch.tensor([0.8])} if with_scores else {}), 0.5)
    drawn = figure([np.zeros((3, 20, 30))], [seen], [None], ["cat"], "title")
    axes = drawn.axes[0]
    assert [text.get_text() for text in axes.texts] == ["cat 0.80" if with_scores else "cat"]
    (box,) = axes.patches
    assert isinstance(box, Rectangle)
    assert box.get_bbox().bounds == pytest.approx([0.3, 0.2, 2.4, 1.6])  # 3 inches for 30 pixels
    assert len(axes.images) == 3  # both pictures, and the mask


def test_predictions_with_a_low_score_are_left_out() -> None:
    given = {"boxes": torch.zeros(2, 4), "scores": torch.tensor([0.2, 0.6])}
    assert Instances.of(given, 0.5).scores.tolist() == pytest.approx([0.6])


def test_masks_of_classes() -> None:
    scores = torch.tensor([[[3.0, 0.0]], [[0.0, 5.0]], [[1.0, 1.0]]])
    for given in (scores, scores.argmax(0)):
        seen = Instances.of(given)
        assert seen.boxes is None
        assert seen.labels.tolist() == [0, 1]
        assert seen.masks.tolist() == [[[True, False]], [[False, True]]]


def test_a_figure_is_a_picture(tmp_path: Path) -> None:
    run(tmp_path, DetectionLog(), epochs=1)
    (file,) = (tmp_path / "figures").iterdir()
    assert imread(file).shape[1] > 500


def no_targets(samples: Any) -> Any:
    return {"pictures": [picture for picture, _ in samples]}


def test_batches_without_a_target_are_drawn_with_their_predictions(tmp_path: Path) -> None:
    run(tmp_path, DetectionLog(), epochs=1, collate=no_targets)
    assert len([*(tmp_path / "figures").iterdir()]) == 1


class Nameless(Detector):
    def forward(self, pictures: Any, targets: Any = None, mode: str = "tensor") -> Any:
        found = super().forward(pictures, targets, mode)
        return found if mode == "loss" else [{"boxes": [[0, 0, 1, 1]]} for _ in found]


def test_boxes_that_are_no_tensors_do_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, DetectionLog(), Nameless(), epochs=1)
    assert sum("draws no images" in record.getMessage() for record in caplog.records) == 1


class Classifier(Detector):
    def forward(self, pictures: Any, targets: Any = None, mode: str = "tensor") -> Any:
        return super().forward(pictures, targets, mode) if mode == "loss" else torch.zeros(len(pictures), 3)


def test_what_cannot_be_drawn_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, DetectionLog(), Classifier())
    assert not (tmp_path / "figures").exists()
    (told,) = (record.getMessage() for record in caplog.records if "detection_log" in record.getMessage())
    assert told.endswith(
        "predictions or targets: the value for an image is a tensor [3], not a mapping with boxes or masks, a tensor "
        "of scores [C, H, W] or a tensor of classes [H, W]."
    )


@pytest.mark.parametrize(
    ("arguments", "told"), [({"count": 0}, "count: 0 is invalid"), ({"score_thr": 2}, "score_thr: 2")]
)
def test_arguments(arguments: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        DetectionLog(**arguments)
