"""Runs whose step is captured: hooks, checkpoints, and the setting; `RecordedGraph` stands for CUDA graphs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_training import SCHEDULES, same
from recorded_graph import RecordedGraph

from trainyard.errors import ConfigError
from trainyard.hooks import EMA, Checkpoint, Hook, Logger, LRFinder, NaNGuard, Norms, ParamSchedule
from trainyard.runner import Runner, checkpoint
from trainyard.schedules import Plateau, Schedule
from trainyard.step.cuda_graph.captured_step import CapturedStep
from trainyard.step.several import SeveralStep


@pytest.fixture
def arguments(parts: Any) -> Any:
    """A small Runner without hooks, whose step can be captured."""
    parts["optim"] |= {"fused": True}
    return parts | {"hooks": {}}


def run(arguments: Any, *, graph: Any = None, **more: Any) -> Any:
    runner = Runner(**arguments, **more)
    runner.prepare()
    if graph is not None:
        runner.__dict__["step"] = CapturedStep(runner.step, graph, dict(runner.model.named_modules()))
    return runner


def test_hooks_see_what_they_would(arguments: Any, tmp_path: Path) -> None:
    """A schedule, EMA, the norms, a guard, a logger over a window; and a validation in between."""
    metrics = []
    for name, graph in (("plain", None), ("captured", RecordedGraph())):
        hooks = {
            "schedule": ParamSchedule(),
            "ema": EMA(decay=0.9),
            "norms": Norms(interval=5),
            "guard": NaNGuard(interval=2),
            "logger": Logger(interval=4),
        }
        more = {"schedule": Schedule(SCHEDULES["cosine"], by="iter"), "clip_grad_norm": 0.5, "accumulate": 2}
        runner = run(arguments | {"hooks": hooks}, graph=graph, work_dir=tmp_path / name, **more)
        (found,) = runner.train()
        metrics.append({key: value for key, value in found.items() if "time" not in key})
    assert graph.replays > 5
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4)


def test_plateau(arguments: Any) -> None:
    rates = []
    for graph in (None, RecordedGraph()):
        schedule = Plateau(monitor="val/accuracy", patience=0, threshold=1.0, cooldown=0)
        runner = run(arguments | {"hooks": {"schedule": ParamSchedule()}}, graph=graph, schedule=schedule)
        runner.train()
        rates.append((runner.learning_rates(), runner.model.state_dict()))
    assert rates[0][0][0] < 0.01
    same(rates[1], rates[0], 1e-5)


def test_a_guard_that_skips_keeps_the_optimizer_out(arguments: Any, said: Any) -> None:
    states = []
    for graph in (None, RecordedGraph()):
        runner = run(arguments | {"hooks": {"guard": NaNGuard(action="skip")}}, graph=graph)
        runner.train()
        states.append(runner.model.state_dict())
    assert "without the step of the optimizer: hook.nan_guard.action=skip decides" in said()[0]
    same(states[1], states[0])


@pytest.mark.parametrize("order", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_checkpoint_is_one_of_any_run(arguments: Any, tmp_path: Path, order: Any, accumulate: int) -> None:
    """Captured, it is resumed as ever, and the other way round; also within a group of batches."""
    hooks = {"checkpoint": Checkpoint(interval=2, by="iter"), "stop": _Stop(7)}
    arguments["accumulate"] = accumulate
    ends = []
    for folder, kinds in (("parts", order), ("plain", (False, False))):
        for captured, hook in zip(kinds, (hooks, {}), strict=True):
            graph = RecordedGraph() if captured else None
            runner = run(arguments | {"hooks": hook}, graph=graph, work_dir=tmp_path / folder, resume=True)
            runner.train()
            if hook:
                _, state = checkpoint.newest(tmp_path / folder / "checkpoints")  # type: ignore[misc]
                (group,) = state["optimizer"]["param_groups"]
                assert type(group["lr"]) is float
                assert group["capturable"] is False
        ends.append(runner.model.state_dict())
    same(ends[0], ends[1], 1e-5)


class _Stop(Hook):
    """Interrupts a run after some iterations."""

    priority = "LOWEST"

    def __init__(self, after: Any) -> None:
        self.after = after

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.after:
            runner.interrupt()


def test_a_captured_run_resumes_to_the_same_bits(arguments: Any, tmp_path: Path) -> None:
    ends = []
    for folder, stops in (("whole", [None]), ("parts", [7, None])):
        for stop in stops:
            hooks = {"checkpoint": Checkpoint(), **({"stop": _Stop(stop)} if stop else {})}
            runner = run(arguments | {"hooks": hooks}, graph=RecordedGraph(), work_dir=tmp_path / folder, resume=True)
            runner.train()
        ends.append(runner.model.state_dict())
    same(ends[1], ends[0])


def test_a_learning_rate_is_found(arguments: Any, tmp_path: Path) -> None:
    """The search trains with the step and puts everything back; the graphs go with what they were of."""
    graph = RecordedGraph()
    runner = run(arguments | {"hooks": {"finder": LRFinder(iterations=20)}}, graph=graph, work_dir=tmp_path / "run")
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    assert graph.replays > 10
    same(dict(runner.model.state_dict()), dict(before))
    assert not runner.step._captured


# -- the setting -------------------------------------------------------------------------------------------------------


def test_a_run_on_the_cpu_has_the_plain_step(arguments: Any) -> None:
    assert type(run(arguments).step).__name__ == "Step"
    with pytest.raises(
        ConfigError, match=r"^capture: True is invalid. Expected auto or false\. This run uses the device"
    ):
        Runner(**arguments, capture=True)
    with pytest.raises(ConfigError, match=r"^capture: 'yes' is invalid. Expected auto, true or false"):
        Runner(**arguments, capture="yes")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"compile": True}, "the model is compiled; capture=true captures the compiled model"),
        ({"compile": "reduce-overhead", "capture": True}, "compile creates its own CUDA graphs"),
        ({"compile": {"backend": "cudagraphs"}, "capture": True}, "compile creates its own CUDA graphs"),
        ({"activation_checkpointing": ["net.*"]}, "activation_checkpointing saves the state of the random generator"),
        ({"optim": {"a": 1}}, "several optimizers take turns"),
    ],
)
def test_settings_that_leave_the_step_as_it_is(
    arguments: Any, monkeypatch: pytest.MonkeyPatch, said: Any, more: Any, reason: str
) -> None:
    """As far as a machine without a device can tell: the step is made as for one, and is the plain one."""
    runner = Runner(**(arguments | {k: v for k, v in more.items() if k not in ("optim", "capture")}))
    runner.settings["capture"] = more.get("capture", "auto")  # true is an error without a device
    step = runner.step if "optim" not in more else SeveralStep(None, {"a": runner.step}, None)
    runner.device = torch.device("cuda")
    assert runner.captured(step, runner.model) is step
    assert said()[0].startswith(f"The step is not captured: {reason}")
