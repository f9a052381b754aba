"""Batches that captured steps gather by themselves; `RecordedGraph` stands for CUDA graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from captured_training import SCHEDULES, same
from interrupting import InterruptAt
from recorded_graph import RecordedGraph
from torch import Tensor

from trainyard.data import Digits, TensorLoader
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Checkpoint, Hook, Logger, Norms, ParamSchedule
from trainyard.runner import IterBasedTrainLoop, Runner
from trainyard.schedules import Schedule
from trainyard.step.cuda_graph import captured_step
from trainyard.step.cuda_graph.captured_step import CapturedStep
from trainyard.step.step import Step

SAMPLES = 45


@pytest.fixture
def arguments(parts: Any) -> Any:
    """A small Runner over batches of 6, of which the last is smaller."""
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(SAMPLES, 4, generator=draw), torch.randint(3, (SAMPLES,), generator=draw)
    parts["model"] |= {"in_features": 4, "num_classes": 3, "dropout": 0.2}
    parts["optim"] |= {"fused": True}
    parts |= {"metrics": {}, "objective": "train/loss", "direction": "minimize"}
    return parts | {"data": {"train": TensorLoader((x, y), 6, shuffle=True, seed=3)}, "hooks": {}}


def run(arguments: Any, graph: Any = None, **more: Any) -> Any:
    runner = Runner(**arguments, **more)
    step = CapturedStep(runner.step, graph or RecordedGraph(), dict(runner.model.named_modules()))
    runner.__dict__["step"] = step  # before a checkpoint is read into it
    runner.prepare()
    return runner


def end_of(runner: Any) -> Any:
    runner.train()
    return {"model": runner.model.state_dict(), "optimizer": runner.optimizer.state_dict()["state"]}


def assert_same_bits(monkeypatch: pytest.MonkeyPatch, make: Any) -> Any:
    """As a run whose batches are copied to where the graph reads them, and as one without any replay."""
    graph = RecordedGraph()
    runner = make(graph)
    ends = [end_of(runner)]
    with monkeypatch.context() as patch:
        patch.setattr(CapturedStep, "batches_of", Step.batches_of)
        ends.append(end_of(make(RecordedGraph())))
        patch.setattr(captured_step, "WARM_UP", 10**9)
        ends.append(end_of(make(RecordedGraph())))
    same(ends[0], ends[1])
    same(ends[0], ends[2])
    return runner, graph


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.usefixtures("capturable_on_the_cpu")
def test_same_bits(monkeypatch: pytest.MonkeyPatch, arguments: Any, accumulate: int, drop_last: bool) -> None:
    """With hooks that look at no batch, and one that has some of its iterations run without a graph."""
    loader = arguments["data"]["train"]
    arguments["data"] = {"train": TensorLoader(loader.tensors, 6, shuffle=True, seed=3, drop_last=drop_last)}
    arguments["loop"]["max_epochs"] = 6

    def make(graph: Any) -> Any:
        hooks = {"schedule": ParamSchedule(), "ema": EMA(decay=0.9), "norms": Norms(interval=5), "log": Logger(4)}
        schedule = Schedule(SCHEDULES["cosine"], by="iter")
        return run(arguments | {"hooks": hooks}, graph, accumulate=accumulate, schedule=schedule)

    runner, graph = assert_same_bits(monkeypatch, make)
    assert graph.replays > 10
    assert not any(captured.inputs for captured in runner.step._captured.values())


@pytest.mark.usefixtures("capturable_on_the_cpu")
def test_groups_that_reach_into_the_next_epoch(monkeypatch: pytest.MonkeyPatch, arguments: Any) -> None:
    arguments["loop"] = IterBasedTrainLoop(max_iters=50)
    _, graph = assert_same_bits(monkeypatch, lambda graph: run(arguments, graph, accumulate=3))
    assert graph.replays > 10


class Looking(Hook):
    """Looks at some batches, before or after they are trained on, and may change them."""

    def __init__(self, before: Any = (), after: Any = (), change: bool = False) -> None:
        self.before, self.after, self.change = before, after, change
        self.seen: list[Tensor] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        if runner.iter in self.before:
            x, _ = data_batch
            self.seen.append(x.clone())
            if self.change:
                x.mul_(-1)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter in self.after:
            self.seen.append(data_batch[0].clone())


@pytest.mark.parametrize(
    "look", [{"before": range(2, 20)}, {"after": range(2, 20)}, {"before": range(2, 20, 3), "change": True}]
)
@pytest.mark.usefixtures("capturable_on_the_cpu")
def test_a_hook_sees_the_batch(monkeypatch: pytest.MonkeyPatch, arguments: Any, look: Any) -> None:
    """And the step trains on what it has made of it."""
    hooks: list[Looking] = []

    def make(graph: Any) -> Any:
        hooks.append(Looking(**look))
        return run(arguments | {"hooks": {"look": hooks[-1]}}, graph)

    _, graph = assert_same_bits(monkeypatch, make)
    assert graph.replays > 0
    same(hooks[0].seen, hooks[1].seen)
    assert len(hooks[0].seen) in (6, 18)


@pytest.mark.parametrize("stop", [7, 12, 19])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.usefixtures("capturable_on_the_cpu")
def test_a_run_resumes_within_an_epoch(arguments: Any, tmp_path: Path, accumulate: int, stop: int) -> None:
    ends = []
    for folder, stops in (("whole", [None]), ("parts", [stop, None])):
        for at in stops:
            hooks = {"checkpoint": Checkpoint(), **({"stop": InterruptAt(at)} if at else {})}
            made = arguments | {"hooks": hooks, "accumulate": accumulate}
            end = end_of(run(made, work_dir=tmp_path / folder, resume=True))
        ends.append(end)
    same(ends[1], ends[0])


def test_rows_of_other_memory_are_gathered_from_there(arguments: Any) -> None:
    """The tensors of a loader are replaced between two epochs."""
    loader = arguments["data"]["train"]
    step = run(arguments).step
    for epoch in range(4):
        for index, batch in enumerate(step.batches_of(loader, epoch, 0)):
            step(batch, index, 8)
    assert len(step._captured) == 2
    loader.tensors = tuple(tensor.clone() for tensor in loader.tensors)
    for index, batch in enumerate(step.batches_of(loader, 4, 0)):
        step(batch, index, 8)
    assert len(step._captured) == 3  # a new one for full batches


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("members", [1, 3])
def test_on_cuda(monkeypatch: pytest.MonkeyPatch, arguments: Any, members: int, accumulate: int) -> None:
    """The bits of a run whose batches are copied; and no step waits for the device."""
    arguments |= {"data": {"_target_": Digits, "batch_size": 96}, "device": "cuda", "accumulate": accumulate}
    arguments["model"] |= {"in_features": 64, "num_classes": 10}
    if members > 1:
        del arguments["optim"]["fused"]

    def trained() -> Any:
        hooks = {"no_waiting": NoWaiting()}
        metric = {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}}
        own = {"hook": hooks, "metric": metric, "objective": "val/loss"}
        configs = [arguments | own | {"seed": member} for member in range(members)]
        for config in configs:
            del config["hooks"], config["metrics"]
        runner: Any = Runner.from_cfg(configs[0]) if members == 1 else FusedRunner(configs)
        runner.train()
        assert runner.step.refusal is None
        return runner, [dict(member.model.state_dict()) for member in runner.all_members]

    runner, ends = trained()
    assert not any(captured.inputs for captured in runner.step._captured.values())
    monkeypatch.setattr(CapturedStep, "batches_of", Step.batches_of)
    runner, copied = trained()
    assert any(captured.inputs for captured in runner.step._captured.values())
    same(ends, copied)


class NoWaiting(Hook):
    """From the last epoch on, what waits for the device within a step is an error."""

    stackable = True
    priority = "LOWEST"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        if runner.epoch == 2:
            torch.cuda.set_sync_debug_mode("error")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
