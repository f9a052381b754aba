"""Runs whose validation is captured: loops, hooks, EMA, members of a stack, and the setting."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_training import same
from recorded_graph import RecordedGraph

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Checkpoint, Hook, Logger, TestTimeAugmentation
from trainyard.metrics import Accuracy
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, ValLoop
from trainyard.runner.evaluation import Evaluator

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class Pictures(Data):
    """Noise of three kinds; the last validation batch of each set is smaller."""

    def __init__(self, sets: Any = ("val",)) -> None:
        self.spec = {"num_classes": 3, "in_channels": 1, "in_features": 64}
        self.splits = ("train", *sets, "test")
        self.y = torch.arange(45) % 3
        self.x = torch.randn(45, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + self.y.view(-1, 1, 1, 1)

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        part = slice(None, None, 2) if split == "val/hard" else slice(None)
        return TensorLoader((self.x[part], self.y[part]), 6, shuffle=split == "train", seed=seed, device=device)


@pytest.fixture
def arguments(parts: Any) -> Any:
    model = {"_target_": "trainyard.models.CNN", "in_channels": 1, "num_classes": 3, "channels": [4]}
    metrics = {
        "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
        "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
        "confusion": {"_target_": "trainyard.metrics.ConfusionMatrix"},
    }
    return parts | {"model": model, "data": Pictures(), "metrics": metrics, "hooks": {}}


class Graphs:
    """Makes the graphs of a run."""

    def __init__(self) -> None:
        self.made: list[RecordedGraph] = []

    def __call__(self) -> RecordedGraph:
        self.made.append(RecordedGraph())
        return self.made[-1]

    @property
    def replays(self) -> list[int]:
        return [graph.replays for graph in self.made]


class Results(Hook):
    """All results, in order."""

    stackable = True

    def __init__(self) -> None:
        self.all: list[Any] = []

    def after_val_epoch(self, runner: Runner, metrics: Any) -> None:
        self.all.append(copy.deepcopy(metrics))

    after_test_epoch = after_val_epoch


def both(make: Any, *, test: bool = False) -> Any:
    """Train twice, plainly and with captured evaluations; returns what was found, the runs and the graphs."""
    found, runners = [], []
    graphs = Graphs()
    for how in (None, graphs):
        results = Results()
        runner = make({"results": results}, "captured" if how else "plain")
        runner.evaluator.make_graph = how
        runner.train()
        if test:
            runner.test()
        numbers = [
            {key: value for key, value in member.metrics.items() if "time" not in key} for member in runner.all_members
        ]
        found.append((results.all, numbers))
        runners.append(runner)
    assert repr(found[1]) == repr(found[0])
    return runners, graphs


def test_a_run_with_an_average_and_both_evaluated(arguments: Any, tmp_path: Path) -> None:
    """The model itself until the average begins, then the average and the model side by side; and a test."""

    def make(hooks: Any, name: str) -> Runner:
        hooks |= {"ema": EMA(0.9, begin=2, evaluate="both"), "logger": Logger(), "checkpoint": Checkpoint()}
        loop = EpochBasedTrainLoop(6)
        return Runner(**arguments | {"hooks": hooks, "loop": loop, "work_dir": tmp_path / name})

    runners, graphs = both(make, test=True)
    assert "val_raw/accuracy" in runners[1].members[0].metrics
    assert len(graphs.made) == 3
    assert min(graphs.replays) > 0


def test_several_sets(arguments: Any) -> None:
    def make(hooks: Any, name: str) -> Runner:
        data = Pictures(("val/easy", "val/hard"))
        hooks |= {"ema": EMA(0.9, evaluate="both")}
        return Runner(**arguments | {"hooks": hooks, "data": data, "objective": "val/hard/accuracy"})

    runners, graphs = both(make)
    assert "val_raw/hard/loss" in runners[1].members[0].metrics
    assert len(graphs.made) == 3  # both sets share those of the average
    assert min(graphs.replays) > 0


def test_validations_within_an_epoch(arguments: Any) -> None:
    def make(hooks: Any, name: str) -> Runner:
        return Runner(**arguments | {"hooks": hooks, "loop": IterBasedTrainLoop(20, val_interval=3)})

    _, graphs = both(make)
    assert graphs.made[0].captures == 2
    assert graphs.replays == [7 * 8 - 4]


def test_hooks_see_what_they_would(arguments: Any) -> None:
    """Predictions and running results, kept until the end."""
    kept: list[Any] = []

    class Keep(Hook):
        def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
            kept[-1].append({name: metric.state.copy() for name, metric in runner.metrics.items()})

        def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            kept[-1].append((data_batch, outputs, {name: m.compute() for name, m in runner.metrics.items()}))

    def make(hooks: Any, name: str) -> Runner:
        kept.append([])
        return Runner(**arguments | {"hooks": hooks | {"keep": Keep()}})

    _, graphs = both(make)
    assert graphs.replays[0] > 10
    same(kept[1], kept[0])


class Leaving(Hook):
    """Ends the second member at some validations."""

    stackable = True

    def __init__(self, validations: list[int]) -> None:
        self.validations = validations

    def after_val_epoch(self, runner: Any, metrics: Any) -> None:
        if runner.training and runner.epoch in self.validations:
            runner.members[1].stop("it has seen enough")


@pytest.mark.parametrize("validations", [[], [2, 4]])
def test_a_stack_whose_members_leave(arguments: Any, tmp_path: Path, validations: Any) -> None:
    def make(hooks: Any, name: str) -> FusedRunner:
        hooks |= {
            "ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.9, "evaluate": "both"},
            "leaving": Leaving(validations),
            "logger": Logger(),
        }
        shared = {key: value for key, value in arguments.items() if key not in ("hooks", "metrics")}
        shared |= {"hook": hooks, "metric": arguments["metrics"], "loop": EpochBasedTrainLoop(6)}
        return FusedRunner([{**shared, "seed": seed, "work_dir": tmp_path / name / str(seed)} for seed in range(4)])

    runners, graphs = both(make, test=True)
    assert len({member.iter for member in runners[0].all_members}) == len(validations) + 1
    assert min(graphs.replays) >= 5


def test_an_augmented_prediction_is_not_captured(arguments: Any, said: Any) -> None:
    def make(hooks: Any, name: str) -> Runner:
        return Runner(**arguments | {"hooks": hooks | {"augmentation": TestTimeAugmentation(val=True)}})

    _, graphs = both(make, test=True)
    assert graphs.made == []
    assert said() == ["The evaluation is not captured: a loop or a hook replaces the prediction."]


class Shifted(ValLoop):
    """Evaluates points that are moved a little."""

    def predictor(self, runner: Runner, name: str) -> Any:
        predict = super().predictor(runner, name)
        return lambda batch: predict((batch[0] + 1, batch[1]))


def test_a_loop_with_a_prediction_of_its_own(arguments: Any, said: Any) -> None:
    _, graphs = both(lambda hooks, name: Runner(**arguments | {"hooks": hooks, "val_loop": Shifted()}))
    assert graphs.made == []
    assert said() == ["The evaluation is not captured: a loop or a hook replaces the prediction."]


class Waits(Hook):
    """Interrupts a run within a validation."""

    def __init__(self, after: int) -> None:
        self.left = after

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            runner.interrupt()


def test_an_interrupted_validation_leaves_nothing_behind(arguments: Any) -> None:
    """The next one, of the same graphs, counts its own batches alone."""
    ends = []
    for graphs in (None, Graphs()):
        runner = Runner(**arguments | {"hooks": {"waits": Waits(3 * 8 + 4)}, "loop": EpochBasedTrainLoop(9)})
        runner.evaluator.make_graph = graphs
        runner.train()
        runner.interrupted = False
        (found,) = runner.val()
        ends.append({key: value for key, value in found.items() if key.startswith("val")})
    assert ends[1] == ends[0]


def test_the_reason_is_said_once(arguments: Any, said: Any) -> None:
    """For the average, for the model beside it and for the test."""
    metrics = arguments["metrics"] | {"own": _Own(prefix="own")}

    def make(hooks: Any, name: str) -> Runner:
        hooks |= {"ema": EMA(0.9, evaluate="both")}
        return Runner(**arguments | {"hooks": hooks, "metrics": metrics})

    both(make, test=True)
    reason = "_Own is not marked as capturable"
    assert said() == [f"The evaluation is captured without metric.own: {reason}."]


class _Own(Accuracy):
    def process(self, batch: Any, outputs: Any) -> None:
        super().process(batch, outputs)


# -- the setting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "device", "captures"),
    [
        ({}, "cpu", False),
        ({}, "cuda", True),
        ({"capture": False}, "cuda", False),
        ({"compile": True}, "cuda", False),
    ],
)
def test_the_setting(arguments: Any, said: Any, more: Any, device: str, captures: bool) -> None:
    """As far as a machine without a device can tell: the evaluator is made as for one."""
    runner = Runner(**arguments | more)
    runner.device = torch.device(device)
    assert (Evaluator.of(runner).make_graph is not None) == captures
    assert said() == (["The evaluation is not captured: the model is compiled."] if "compile" in more else [])
