"""A captured step of several members: on the CPU, where `RecordedGraph` stands for CUDA graphs."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import InterruptAt
from recorded_graph import RecordedGraph
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.fused import probe
from trainyard.fused.optim import graph_hyperparameters
from trainyard.fused.optim.graph_hyperparameters import StackedGraphHyperparameters
from trainyard.fused.optim.kernel import KernelOptimizer
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Checkpoint, Hook, Logger, NaNGuard, Norms, ParamSchedule
from trainyard.runner import EpochBasedTrainLoop, Runner, checkpoint
from trainyard.schedules import Schedule
from trainyard.step.cuda_graph.captured_step import WARM_UP, CapturedStep

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"_target_": "trainyard.models.MLP", "in_features": 64, "num_classes": 3, "hidden": [8], "dropout": 0.2},
    "cnn": {"_target_": "trainyard.models.CNN", "in_channels": 1, "num_classes": 3, "channels": [4]},
}
OPTIMS: dict[str, dict[str, Any]] = {
    "sgd": {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "adam": {"_target_": "torch.optim.Adam", "lr": 2e-3},
    "adamw": {"_target_": "torch.optim.AdamW", "lr": 2e-3, "weight_decay": 0.05, "amsgrad": True},
    "rmsprop": {"_target_": "torch.optim.RMSprop", "lr": 1e-3, "centered": True, "momentum": 0.5},
    "adagrad": {"_target_": "torch.optim.Adagrad", "lr": 1e-2, "lr_decay": 1e-3},
    "nadam": {"_target_": "torch.optim.NAdam", "lr": 2e-3},
    "radam": {"_target_": "torch.optim.RAdam", "lr": 2e-3, "weight_decay": 0.01},
    "adamax": {"_target_": "torch.optim.Adamax", "lr": 2e-3},
    "lion": {"_target_": "trainyard.optim.Lion", "lr": 3e-4, "weight_decay": 0.1},
}
SCHEDULES = {
    "constant": None,
    "cosine": partial(CosineAnnealingLR, T_max="auto"),
    "onecycle": partial(OneCycleLR, max_lr="auto", total_steps="auto", cycle_momentum="auto"),
}


@pytest.fixture(autouse=True)
def _columns_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels for the CPU take numbers that are not in tensors; CUDA has the columns."""
    monkeypatch.setattr(KernelOptimizer, "_runs", lambda *_: [])


class Pictures(Data):
    """Noise of three kinds, in eight batches an epoch of which the last is smaller."""

    def __init__(self) -> None:
        self.spec = {"num_classes": 3, "in_channels": 1, "in_features": 64}
        self.splits = ("train", "val")
        self.y = torch.arange(45) % 3
        self.x = torch.randn(45, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + self.y.view(-1, 1, 1, 1)

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        return TensorLoader((self.x, self.y), 6, shuffle=split == "train", seed=seed, device=device)


class Stop(Hook):
    """Ends the second member after some iterations."""

    priority = "LOW"
    stackable = True

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.after:
            runner.members[1].stop("it has seen enough")


def config(optim: Any, schedule: Any, member: Any, *, model: str = "mlp", **more: Any) -> Any:
    own = OPTIMS[optim]
    chosen = SCHEDULES[schedule]
    return {
        "model": MODELS[model],
        "data": {"_target_": Pictures},
        "optim": own | {"_partial_": True, "lr": own["lr"] * (1 + member / 2)},
        "schedule": None if chosen is None else Schedule(chosen, by="iter"),
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "hook": {"schedule": ParamSchedule()},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "objective": "val/loss",
        "device": "cpu",
        "seed": member,
    } | more


def trained(configs: Any, graph: Any = None) -> Any:
    runner = FusedRunner(configs)
    runner.prepare()
    if graph is not None:
        modules = {**dict(runner.stack.code.named_modules()), "": runner.model}
        runner.__dict__["step"] = CapturedStep(runner.step, graph, modules)
    runner.train()
    return runner


def assert_same_bits(runner: Any, other: Any) -> None:
    for own, expected in zip(runner.all_members, other.all_members, strict=True):
        for (name, tensor), value in zip(
            own.model.state_dict().items(), expected.model.state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, value), name
        values, theirs = own.metrics, expected.metrics
        assert {k: v for k, v in values.items() if "time" not in k} == {
            k: v for k, v in theirs.items() if "time" not in k
        }


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optim", OPTIMS)
def test_every_optimizer(optim: Any, schedule: Any) -> None:
    """Every number of a stacked optimizer is in a tensor on the device: also momenta that change with every step."""
    graph = RecordedGraph()
    configs = [config(optim, schedule, member) for member in range(3)]
    captured = trained(configs, graph)
    assert captured.step.refusal is None
    assert graph.captures == 1
    assert graph.replays == 3 * 7 - WARM_UP  # the smaller batches come three times
    configs = [config(optim, schedule, member) for member in range(3)]
    assert_same_bits(captured, trained(configs))


@pytest.mark.parametrize(("rows", "expected"), [(64, 1), (8, 3)])
def test_the_numbers_of_a_schedule_are_sent_ahead(monkeypatch: pytest.MonkeyPatch, rows: int, expected: int) -> None:
    """Those of 24 steps, momenta and all, in as many transfers as the table is filled."""
    written: list[int] = []
    write = StackedGraphHyperparameters._write

    def watched(self: StackedGraphHyperparameters) -> None:
        written.append(len(written))
        write(self)

    monkeypatch.setattr(graph_hyperparameters, "ROWS", rows)
    monkeypatch.setattr(StackedGraphHyperparameters, "_write", watched)
    runner = trained([config("adam", "onecycle", member) for member in range(3)], RecordedGraph())
    assert runner.step.refusal is None
    assert runner.iter == 24
    assert len(written) == expected


@pytest.mark.parametrize("leave", [None, 11])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", ["clip_grad_norm", "clip_grad_value"])
def test_everything_together(tmp_path: Path, accumulate: int, clip: str, leave: int | None) -> None:
    """BatchNorm, clipping by each member's own, EMA, checkpoints, a measure, a member that leaves within a group."""
    runners = []
    for name, graph in (("plain", None), ("captured", RecordedGraph())):
        hooks = {
            "schedule": ParamSchedule(),
            "ema": EMA(decay=0.9),
            "norms": Norms(interval=6),
            "guard": NaNGuard(interval=4),
            "logger": Logger(interval=4),
            "checkpoint": Checkpoint(interval=4, by="iter"),
            **({} if leave is None else {"stop": Stop(leave)}),
        }
        more = {"hook": hooks, "accumulate": accumulate, "loop": {"_target_": EpochBasedTrainLoop, "max_epochs": 6}}
        configs = [
            config("adam", "onecycle", k, model="cnn", **more, work_dir=str(tmp_path / name / str(k)))
            | {clip: 0.05 + 0.1 * k}
            for k in range(3)
        ]
        runners.append(trained(configs, graph))
    assert graph.replays > 3
    assert_same_bits(runners[1], runners[0])
    for k in range(3):
        states = [checkpoint.newest(tmp_path / name / str(k) / "checkpoints")[1] for name in ("plain", "captured")]
        numbers = [state["optimizer"]["param_groups"] for state in states]
        assert numbers[0] == numbers[1]
        assert states[0]["step"].keys() <= states[1]["step"].keys()


def test_members_leave_one_after_another(caplog: pytest.LogCaptureFixture) -> None:
    """Each time the step is captured anew; that they go soon is no reason to give it up."""

    class Leaving(Hook):
        priority = "LOW"
        stackable = True

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter % 6 == 0:
                runner.members[0].stop("it has seen enough")

    graph = RecordedGraph()
    runners = [
        trained([config("adam", "cosine", k) | {"hook": {"leaving": Leaving()}} for k in range(6)], how)
        for how in (None, graph)
    ]
    assert graph.captures == 4
    assert runners[1].step.refusal is None
    assert_same_bits(runners[1], runners[0])


@pytest.mark.parametrize(("accumulate", "stop"), [(1, 13), (3, 12)])
def test_a_stack_resumes_within_an_epoch(tmp_path: Path, accumulate: int, stop: int) -> None:
    """Its graphs gather the batches from there on; a member has ended by then."""
    ends = []
    for folder, stops in (("whole", [None]), ("parts", [stop, None])):
        for at in stops:
            hooks = {"checkpoint": Checkpoint(), "leave": Stop(9), **({"stop": InterruptAt(at)} if at else {})}
            more = {"hook": hooks, "accumulate": accumulate, "resume": True}
            configs = [
                config("adam", "constant", k, model="cnn", **more, work_dir=str(tmp_path / folder / str(k)))
                for k in range(3)
            ]
            runner: Any = FusedRunner(configs)
            plain = runner.step
            modules = {**dict(runner.stack.code.named_modules()), "": runner.model}
            runner.__dict__["step"] = CapturedStep(plain, RecordedGraph(), modules)
            runner.train()
        assert not any(captured.inputs for captured in runner.step._captured.values())
        ends.append(runner)
    assert_same_bits(*ends)


def test_half_of_the_precision() -> None:
    graph = RecordedGraph()
    captured = trained([config("adamw", "cosine", k, precision="bf16") for k in range(2)], graph)
    assert graph.replays > 10
    assert_same_bits(captured, trained([config("adamw", "cosine", k, precision="bf16") for k in range(2)]))


def test_a_number_that_becomes_zero(caplog: pytest.LogCaptureFixture) -> None:
    """Where a weight decay goes, the arithmetic is another: the step is captured anew."""

    class Undecay(Hook):
        priority = "HIGH"
        stackable = True

        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
            if runner.iter == 12:
                for group in runner.optimizer.param_groups:
                    group["weight_decay"] = torch.zeros(2, dtype=torch.float64)

    caplog.set_level(logging.INFO)
    runners = []
    graph = RecordedGraph()
    for how in (None, graph):
        configs = [config("adam", "constant", k) for k in range(2)]
        for k, values in enumerate(configs):
            values["hook"] = {"undecay": Undecay()}
            values["optim"]["weight_decay"] = 0.1 * (k + 1)
        runners.append(trained(configs, how))
    assert graph.captures == 2
    assert_same_bits(runners[1], runners[0])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_probe_times_replays(accumulate: int) -> None:
    """It trains whole groups of batches, and times none before the step is captured."""
    graph = RecordedGraph()
    runner = FusedRunner([config("adam", "constant", member, accumulate=accumulate) for member in range(2)])
    runner.prepare()
    modules = {**dict(runner.stack.code.named_modules()), "": runner.model}
    runner.__dict__["step"] = CapturedStep(runner.step, graph, modules)
    before = [(graph.captures, graph.replays)]

    def synchronized(device: torch.device) -> None:
        before.append((graph.captures, graph.replays))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "synchronize", synchronized)
        assert probe._seconds(runner) > 0
    assert len(before) == 1 + 2 * probe.STEPS
    assert before[1] == (accumulate, accumulate)
    assert before[-1] == (accumulate, accumulate * (1 + probe.STEPS))
