"""The captured step on a CUDA device."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_training import MODELS, OPTIMS, SCHEDULES, UNCAPTURABLE, drive, pictures, same, step_of, warmed_up

from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Hook, ParamSchedule
from trainyard.models import MLP
from trainyard.runner import Env, Runner
from trainyard.schedules import Schedule
from trainyard.step.cuda_graph import captured_step, rate_table
from trainyard.step.cuda_graph.captured_step import CapturedStep
from trainyard.step.cuda_graph.graph import CudaGraph

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("deterministic")]
CUDA = "cuda"
FOREACH = {"adam foreach", "rmsprop", "nadam", "radam", "adamax", "lion"}


def assert_captured(
    monkeypatch: pytest.MonkeyPatch, model: Any, optim: Any, *, close: float = 2e-3, **settings: Any
) -> Any:
    """The replays have the bits of the steps before the capture, the run is the plain one to rounding."""
    model, data = MODELS[model]
    more = {"device": CUDA, "schedule": "cosine", **settings}
    step, state = drive(CudaGraph(torch.device(CUDA)), model, optim, data, **more)
    assert step.refusal is None
    assert step._captured
    drawn = torch.cuda.get_rng_state()
    same(state, warmed_up(monkeypatch, CudaGraph(torch.device(CUDA)), model, optim, data, **more))
    assert torch.equal(drawn, torch.cuda.get_rng_state())
    if close is not None:
        same(state["losses"], drive(None, model, optim, data, **more)[1]["losses"], close)
    return step


@pytest.mark.parametrize("optim", OPTIMS)
@pytest.mark.parametrize("model", MODELS)
def test_replays_have_the_bits_of_the_steps_before(monkeypatch: pytest.MonkeyPatch, model: Any, optim: Any) -> None:
    step = assert_captured(monkeypatch, model, OPTIMS[optim])
    assert step._uncaptured_update is None


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [(0.5, None), (None, 0.01)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_settings(monkeypatch: pytest.MonkeyPatch, accumulate: int, clip: Any, precision: str) -> None:
    more = {"accumulate": accumulate, "clip": clip, "precision": precision, "epochs": 6}
    assert_captured(monkeypatch, "cnn", OPTIMS["adam"], close=None, **more)


@pytest.mark.parametrize("optim", UNCAPTURABLE)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_optimizer_that_steps_outside(monkeypatch: pytest.MonkeyPatch, optim: Any, accumulate: int) -> None:
    assert assert_captured(monkeypatch, "mlp", UNCAPTURABLE[optim], accumulate=accumulate, epochs=5)._uncaptured_update


@pytest.mark.parametrize("more", [{"precision": "fp16", "clip": (1.0, None)}, {"schedule": "onecycle"}])
def test_an_update_that_steps_outside(monkeypatch: pytest.MonkeyPatch, more: Any) -> None:
    assert assert_captured(monkeypatch, "mlp", OPTIMS["adam"], close=None, epochs=6, **more)._uncaptured_update


class Waiting(MLP):
    def train_step(self, batch: Any) -> Any:
        loss = super().train_step(batch)["loss"]
        return {"loss": loss * 2.0 if loss.item() > 1 else loss}


def test_a_model_that_waits(said: Any) -> None:
    made = partial(Waiting, in_features=64, num_classes=3, hidden=[8], dropout=0.2)
    states = [
        drive(how, made, OPTIMS["adam"], pictures, device=CUDA)[1] for how in (None, CudaGraph(torch.device(CUDA)))
    ]
    assert said()[0].startswith("The step is not captured: the code waits for the device (test_captured_cuda.py, line ")
    same(states[1], states[0], 1e-3)


def test_a_capture_that_fails_leaves_all_as_it_was(said: Any) -> None:
    """The random generator too, which torch has told that a capture is going on."""

    class Unheeding(CudaGraph):
        def warm_up(self, function: Any) -> Any:
            return super().warm_up(function)[0], None

    made = partial(Waiting, in_features=64, num_classes=3, hidden=[8], dropout=0.2)
    states = [
        drive(how, made, OPTIMS["adam"], pictures, device=CUDA)[1] for how in (None, Unheeding(torch.device(CUDA)))
    ]
    assert said()[0].startswith("The step is not captured: ")
    same(states[1], states[0], 1e-3)
    assert_can_capture()


def assert_can_capture() -> None:
    x = torch.ones(4, device=CUDA)
    replay, y = CudaGraph(torch.device(CUDA)).capture(lambda: x + torch.rand(4, device=CUDA))
    replay()
    first = y.clone()
    replay()
    assert not torch.equal(first, y)


@pytest.mark.parametrize("optim", sorted(FOREACH))
def test_steps_are_counted_on_the_device_and_saved_as_ever(optim: Any) -> None:
    """A state with its counts on the CPU is taken up, and one is given back."""
    model, data = MODELS["mlp"]
    step, _ = drive(None, model, OPTIMS[optim], data, device=CUDA)
    saved = copy.deepcopy(step.optimizer.state_dict())
    captured = CapturedStep(step, CudaGraph(torch.device(CUDA)), {})
    captured.optimizer.load_state_dict(saved)
    batch = tuple(part.to(CUDA) for part in data(6))
    for index in range(8):
        captured(batch, index, 8)
    assert captured._captured
    (group,) = captured.optimizer.param_groups
    assert type(group["lr"]) is float
    assert not group.get("capturable")
    counts = [state["step"] for state in captured.optimizer.state.values() if "step" in state]
    assert all(count.is_cuda and count.item() == 24 + 8 for count in counts)
    captured._refuse("the test ends")
    assert not any(state["step"].is_cuda for state in captured.optimizer.state.values() if "step" in state)


def test_memory_does_not_grow() -> None:
    model = MLP(in_features=64, num_classes=3, hidden=[256, 256]).to(CUDA)
    step = step_of(model, OPTIMS["adam"](model.parameters()), clip=(1.0, None))
    step = CapturedStep(step, CudaGraph(torch.device(CUDA)), dict(model.named_modules()))
    batch = tuple(part.to(CUDA) for part in pictures(64))
    sizes = []
    for index in range(60):
        step(batch, index, 60)
        if index % 20 == 19:
            torch.cuda.synchronize()
            sizes.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert sizes[1] == sizes[2]


def test_no_replay_waits(parts: Any) -> None:
    runner = Runner(**(parts | {"device": CUDA}))
    runner.prepare()
    assert isinstance(runner.step, CapturedStep)
    batch = next(iter(runner.loader("train").batches()))
    for _ in range(5):
        runner.step(batch, 0, 1)
    assert runner.step._captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = runner.step(batch, 0, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outputs["loss"].is_cuda


@pytest.mark.parametrize("optim", ["sgd", "adam", "adam foreach"])
def test_rates_from_a_table_are_those_that_the_host_sends(monkeypatch: pytest.MonkeyPatch, optim: str) -> None:
    """And no step waits, not even for the next rows of the table, or where a rate is set by hand."""
    monkeypatch.setattr(rate_table, "ROWS", 16)

    def trained(foreseen: Any) -> Any:
        torch.manual_seed(0)
        model = MLP(in_features=64, num_classes=3, hidden=[8]).to(CUDA)
        optimizer = OPTIMS[optim](model.parameters())
        rows, index = Schedule(SCHEDULES["cosine"]), 0
        rows.bind(optimizer, length=60)
        step = CapturedStep(step_of(model, optimizer), CudaGraph(torch.device(CUDA)), dict(model.named_modules()))
        if foreseen:
            step.foresee(lambda: rows.ahead(index))
        batch, losses = tuple(part.to(CUDA) for part in pictures(6)), []
        for index in range(60):
            optimizer.param_groups[0].update(rows.row(index)[0])
            if 30 <= index < 33:
                optimizer.param_groups[0]["lr"] *= 0.5
            torch.cuda.set_sync_debug_mode("error" if index > captured_step.WARM_UP else "default")
            try:
                losses.append(step(batch, index, 60)["loss"])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert step._captured
        return {"losses": torch.stack(losses), "model": model.state_dict()}

    same(trained(True), trained(False))


@pytest.mark.parametrize("capture", ["auto", True, False])
def test_a_run(parts: Any, capture: bool | str) -> None:
    parts["loop"]["max_epochs"] = 30
    hooks = {"ema": EMA(decay=0.9), "schedule": ParamSchedule()}
    runner = Runner(**(parts | {"device": CUDA, "hooks": hooks, "capture": capture}), precision="bf16")
    (metrics,) = runner.train()
    assert isinstance(runner.step, CapturedStep) == bool(capture)
    assert metrics["val/accuracy"] > 0.9


@pytest.mark.parametrize("stops", [[3], [1, 3]])
def test_a_captured_run_resumes_to_the_same_bits(parts: Any, tmp_path: Path, stops: Any) -> None:
    parts |= {"device": CUDA, "env": Env(deterministic=True)}
    parts["model"]["dropout"] = 0.3
    ends = []
    for name, epochs in (("whole", [3]), ("parts", stops)):
        for count in epochs:
            parts["loop"]["max_epochs"] = count
            runner = Runner(**copy.deepcopy(parts), work_dir=tmp_path / name, resume=True)
            runner.train()
        ends.append(dict(runner.model.state_dict()))
    same(ends[1], ends[0])


class Leaving(Hook):
    priority = "LOW"
    stackable = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == 11:
            runner.members[1].stop("it has seen enough")


@pytest.mark.parametrize("optim", OPTIMS)
@pytest.mark.parametrize("more", [{}, {"accumulate": 3, "clip_grad_norm": 0.3}, {"precision": "fp16"}])
def test_members(monkeypatch: pytest.MonkeyPatch, optim: Any, more: Any) -> None:
    """Also momenta that change with every step, and a member that leaves."""
    made = OPTIMS[optim]
    kept = {key: value for key, value in made.keywords.items() if key not in ("fused", "foreach")}  # type: ignore[attr-defined]

    def trained() -> Any:
        configs = [
            {
                "model": {"_target_": "trainyard.models.CNN", "in_channels": 1, "num_classes": 10, "channels": [4]},
                "data": {"_target_": "trainyard.data.Digits", "batch_size": 256},
                "optim": {"_target_": made.func, "_partial_": True, **kept, "lr": kept["lr"] * (1 + member)},  # type: ignore[attr-defined]
                "schedule": Schedule(partial(torch.optim.lr_scheduler.OneCycleLR, max_lr="auto", total_steps="auto",
                                             cycle_momentum="auto"), by="iter"),
                "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 12},
                "hook": {"schedule": ParamSchedule(), "leaving": Leaving()},
                "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
                "device": CUDA,
                "env": {"_target_": "trainyard.runner.Env", "deterministic": True},
                "seed": member,
                **more,
            }
            for member in range(3)
        ]  # fmt: skip
        runner = FusedRunner(configs)
        runner.train()
        return runner, [dict(solo.model.state_dict()) for solo in runner.all_members]

    captured, states = trained()
    assert captured.step.refusal is None
    assert captured.step._captured
    assert captured.step._uncaptured_update is None
    with monkeypatch.context() as patch:
        patch.setattr(captured_step, "WARM_UP", 10**9)
        same(states, trained()[1])
