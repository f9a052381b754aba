import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data import ArrayData, Rings
from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, EarlyStopping
from trainyard.runner import EpochBasedTrainLoop


def stops_after(values: Any, direction: Any, patience: Any, min_delta: Any) -> Any:
    """The reference: after how many validations training ends."""
    best, waited = None, 0
    for count, value in enumerate(values, 1):
        gain = math.inf if best is None else (value - best if direction == "maximize" else best - value)
        if not math.isnan(value) and gain > min_delta:
            best, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            return count
    return len(values)


@pytest.fixture
def quick() -> Any:
    """One batch an epoch, so that a training of twelve validations takes milliseconds."""
    sources = Rings(num_samples=40).sources
    return ArrayData({split: sources[split] for split in ("train", "val")}, {"in_features": 2, "num_classes": 2})


# Eighths are exact in binary: sums and differences of them are what the reference says.
EIGHTHS = st.integers(0, 16).map(lambda eighth: eighth / 8)


@settings(max_examples=60)
@given(
    values=st.lists(st.one_of(EIGHTHS, st.just(math.nan)), min_size=1, max_size=12),
    direction=st.sampled_from(["minimize", "maximize"]),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.125, 0.5]),
)
def test_it_ends_the_training_when_the_reference_does(
    make: Any, scripted: Any, quick: Any, values: Any, direction: str, patience: int, min_delta: float
) -> None:
    runner = make(
        {"stop": EarlyStopping(patience=patience, min_delta=min_delta)},
        epochs=len(values),
        data=quick,
        metrics={"loss": scripted(values)},
        direction=direction,
    )
    runner.train()
    ended = stops_after(values, direction, patience, min_delta)
    assert runner.epoch == ended
    stopped = runner.members[0].stop_reason is not None
    assert stopped is (ended < len(values) or stops_after([*values, math.nan], direction, patience, min_delta) == ended)
    assert not runner.members[0].failed, "ended, and well"


def test_another_metric_and_direction_may_be_watched(make: Any, scripted: Any, quick: Any) -> None:
    metrics = {"loss": scripted([3.0, 2.0, 1.0, 0.5]), "score": scripted([0.5, 0.75, 0.75, 0.75])}
    hook = EarlyStopping(monitor="val/score", direction="maximize", patience=1)
    runner = make({"stop": hook}, epochs=4, data=quick, metrics=metrics)
    runner.train()
    assert runner.epoch == 3
    told = "val/score has not improved on 0.75 for 1 validation"
    assert runner.members[0].stop_reason == told


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_resumed_run_goes_on_waiting(make: Any, scripted: Any, quick: Any, tmp_path: Path, at: int) -> None:
    values = [0.5, 0.25, 0.5, 0.5, 0.5, 0.5]

    def run(epochs: Any, left: Any, resume: Any) -> Any:
        return make(
            {"stop": EarlyStopping(patience=3), "checkpoint": Checkpoint()},
            loop=EpochBasedTrainLoop(epochs),
            data=quick,
            metrics={"loss": scripted(left)},
            work_dir=tmp_path,
            resume=resume,
        )

    run(at, values, False).train()
    resumed = run(6, values[at:], True)
    resumed.train()
    assert resumed.epoch == 5
    again = run(6, [], True)
    again.train()
    assert (again.epoch, again.members[0].stop_reason) == (5, resumed.members[0].stop_reason), "it stays stopped"


def test_validating_alone_counts_for_nothing(make: Any, scripted: Any, quick: Any) -> None:
    runner = make({"stop": EarlyStopping(patience=1)}, data=quick, metrics={"loss": scripted([1.0, 1.0, 1.0])})
    runner.metrics["loss"].values.pop(0)  # nothing is rehearsed
    for _ in range(3):
        runner.val()
    assert runner.members[0].stop_reason is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"patience": 0}, "patience: 0 is invalid. Expected an integer of at least 1"),
        ({"patience": 1.5}, "patience: 1.5 is invalid"),
        ({"min_delta": -0.1}, "min_delta: -0.1 is invalid. Expected a number of at least 0"),
        (
            {"direction": "max"},
            "direction: 'max' is invalid. Expected one of maximize, minimize, or null for the direction",
        ),
    ],
)
def test_settings_that_cannot_work(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        EarlyStopping(**settings)
    assert told in str(error.value)
