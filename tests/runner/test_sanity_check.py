"""What nobody computes is told before the training."""

from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import ConfigError
from trainyard.hooks import EMA, Checkpoint, EarlyStopping, Hook
from trainyard.runner import Runner


class Gap(Hook):
    """Records a result of its own at each validation."""

    priority = "HIGH"

    def metric_names(self, names: Any) -> Any:
        return ["val/gap"]

    def after_val_epoch(self, runner: Runner, metrics: Any) -> None:
        values = {"val/gap": metrics["val/loss"] - metrics["val/accuracy"]}
        runner.members[0].record(values, step=runner.iter, epoch=runner.epoch)


@pytest.fixture
def make(parts: Any, tmp_path: Path) -> Any:
    return lambda hooks, **more: Runner(**(parts | {"hooks": hooks, "work_dir": tmp_path / "run"} | more))


@pytest.mark.parametrize("name", ["val/acuracy", "val_raw/accuracy", "val/gap", "test/accuracy"])
def test_the_best_of_what_nobody_computes(make: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as error:
        make({"saver": Checkpoint(save_best={"val/loss": "minimize", name: "maximize"})}).train()
    assert str(error.value).startswith(
        f"hook.saver.save_best: No metric named {name!r}. This run computes val/accuracy, val/loss."
    )
    assert not (tmp_path / "run").exists()


def test_what_another_hook_records(make: Any, tmp_path: Path) -> None:
    hooks = {"checkpoint": Checkpoint(save_best={"val/gap": "minimize"}), "gap": Gap()}
    assert "val/gap" in make(hooks | {"stop": EarlyStopping("val/gap", "minimize")}).train()[0]
    assert (tmp_path / "run/checkpoints/best_gap.pt").exists()


def test_a_result_that_a_hook_records_after_it_is_read(make: Any) -> None:
    late = Gap()
    late.priority = "NORMAL"
    hooks = {"early_stop": EarlyStopping("val/gap", "minimize"), "gap": late}
    with pytest.raises(ConfigError) as error:
        make(hooks, work_dir=None).train()
    assert str(error.value) == (
        "hook.early_stop.monitor: 'val/gap' is invalid. Expected a metric that is recorded before it is read. hook.gap "
        "records this metric, but is called after hook.early_stop. Set a priority below 50, such as "
        "+hook.gap.priority=49."
    )
    late.priority = 49  # type: ignore[assignment]
    make(hooks, work_dir=None).train()


def test_a_result_that_a_hook_has_not_recorded_yet(make: Any) -> None:
    hooks = {"ema": EMA(0.9, begin=2, evaluate="both"), "early_stop": EarlyStopping("val_raw/accuracy", "maximize")}
    with pytest.raises(ConfigError, match=r"hook\.ema records this metric, but has not recorded it yet"):
        make(hooks, work_dir=None).train()


def test_the_raw_weights_results(make: Any, tmp_path: Path) -> None:
    saver = Checkpoint(save_best={"val_raw/accuracy": "maximize"})
    make({"checkpoint": saver, "ema": EMA(0.9, evaluate="both")}).train()
    assert (tmp_path / "run/checkpoints/best_val_raw_accuracy.pt").exists()
    with pytest.raises(ConfigError, match="Did you mean 'val_raw/accuracy'"):
        make({"stop": EarlyStopping("val_raw/acuracy"), "ema": EMA(0.9, evaluate="both")}, work_dir=None).train()
