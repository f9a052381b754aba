"""Values that are missing, not finite, or good enough."""

import math
from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, EarlyStopping, Hook


def train(make: Any, scripted: Any, hook: Any, values: Any, **more: Any) -> Any:
    runner = make({"stop": hook}, epochs=len(values), metrics={"loss": scripted(values)}, **more)
    runner.train()
    return runner.epoch, runner.members[0]


@pytest.mark.parametrize(
    ("direction", "values", "ended"),
    [("minimize", [0.5, 0.3, 0.25, 0.1], 3), ("minimize", [0.2, 0.1], 1), ("maximize", [0.1, 0.2, 0.25, 0.3], 3)],
)
def test_it_ends_at_the_threshold(make: Any, scripted: Any, direction: str, values: Any, ended: int) -> None:
    hook = EarlyStopping(stopping_threshold=0.25, patience=9)
    epoch, member = train(make, scripted, hook, values, direction=direction)
    assert (epoch, member.failed) == (ended, False)
    assert member.stop_reason == f"val/loss has reached {values[ended - 1]:g} (stopping_threshold 0.25)"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_no_better(make: Any, scripted: Any, bad: Any) -> None:
    epoch, member = train(make, scripted, EarlyStopping(patience=2), [0.5, bad, bad, 0.1])
    assert (epoch, member.failed) == (3, False)
    assert member.stop_reason == "val/loss has not improved on 0.5 for 2 validations"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_it_can_end_the_run_as_failed(make: Any, scripted: Any, bad: Any) -> None:
    epoch, member = train(make, scripted, EarlyStopping(check_finite=True), [0.5, bad, 0.1])
    assert (epoch, member.failed, member.stop_reason) == (2, True, f"val/loss is {bad}")


class Late(Hook):
    """Records a metric of its own from the second epoch on."""

    priority = "HIGH"

    def after_val_epoch(self, runner: Any, metrics: Any) -> None:
        if runner.epoch >= 2:
            runner.members[0].record({"val/late": 0.5}, step=runner.iter, epoch=runner.epoch)


def test_a_metric_that_comes_late_is_waited_for(make: Any, scripted: Any, caplog: pytest.LogCaptureFixture) -> None:
    hooks = {"stop": EarlyStopping("val/late", strict=False, patience=2), "late": Late()}
    runner = make(hooks, epochs=6, metrics={"loss": scripted([1.0] * 6)})
    runner.train()
    assert runner.epoch == 4
    message = "Early stopping skips validations without a new value of the monitored metric val/late."
    told = [record for record in caplog.records if record.getMessage() == message]
    assert len(told) == 1


def test_strictly_nobody_trains_for_a_metric_that_is_not_there(make: Any, tmp_path: Path) -> None:
    hooks = {"stop": EarlyStopping("val/los"), "checkpoint": Checkpoint()}
    with pytest.raises(
        ConfigError,
        match=r"hook.stop.monitor: No metric named 'val/los'. .* Did you mean "
        r"'val/loss'\?",
    ):
        make(hooks, work_dir=tmp_path / "run").train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["high", math.nan])
def test_a_threshold_that_is_none(given: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"stopping_threshold: .* is invalid. Expected a number, or null for no threshold"
    ):
        EarlyStopping(stopping_threshold=given)
