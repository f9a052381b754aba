"""What the recorder of a LightningModule's values keeps; it needs no Lightning."""

from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import MeanMetric

from trainyard.errors import TrainyardError
from trainyard.models.lightning.recorder import Recorder


def recorder(split: str = "train") -> Recorder:
    return Recorder(split, torch.zeros(4, 2), torch.device("cpu"))


def test_metrics_of_torchmetrics_in_a_training_step_are_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        of_step = recorder()
        of_step.log("train_only_here", MeanMetric())
        of_step.log("train_error", 0.5)
        assert of_step.numbers() == {"error": torch.tensor(0.5)}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("'only_here' is a metric of torchmetrics that training_step logs. It is not recorded:")


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int64(1), True, 2, torch.tensor([1])])
def test_what_is_a_number(value: Any) -> None:
    of_step = recorder()
    of_step.log("a", value)
    assert of_step.numbers() == {"a": torch.tensor(float(value))}


@pytest.mark.parametrize("value", ["0.5", None, torch.zeros(2)])
def test_what_is_not_a_number(value: object) -> None:
    with pytest.raises(TrainyardError, match=r"self.log\('a'\) received a .* but requires"):
        recorder().log("a", value)
