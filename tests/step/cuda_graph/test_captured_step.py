"""A captured step does what the step does: shown on the CPU, where `RecordedGraph` stands for CUDA graphs."""

from __future__ import annotations

import copy
import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from captured_training import MODELS, OPTIMS, SCHEDULES, UNCAPTURABLE, drive, pictures, same, step_of, warmed_up
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_graph import RecordedGraph
from torch import nn

from trainyard.hooks.nan_guard import SkipNonFinite
from trainyard.models import MLP, BaseModel
from trainyard.step.clip import make_clip
from trainyard.step.cuda_graph.captured_step import WARM_UP, CapturedStep

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("capturable_on_the_cpu")


def assert_captured(
    monkeypatch: pytest.MonkeyPatch, model: Any, optim: Any, *, close: float = 1e-4, **settings: Any
) -> Any:
    """Replays give the bits of the steps before a capture; and the run, where asked, is the plain one to rounding."""
    model, data = MODELS[model]
    graph = RecordedGraph()
    step, state = drive(graph, model, optim, data, **settings)
    assert step.refusal is None
    same(state, warmed_up(monkeypatch, RecordedGraph(), model, optim, data, **settings))
    if close is not None:
        _, plain = drive(None, model, optim, data, **settings)
        same(state, plain, close)  # plain numbers all the same: no tensor for a learning rate, no flag
    return graph


@pytest.mark.parametrize("optim", OPTIMS)
@pytest.mark.parametrize("model", MODELS)
def test_every_optimizer(monkeypatch: pytest.MonkeyPatch, model: Any, optim: Any) -> None:
    graph = assert_captured(monkeypatch, model, OPTIMS[optim], schedule="cosine")
    assert graph.captures == 1  # the smaller batches come three times
    assert graph.replays == 3 * 7 - WARM_UP


@pytest.mark.parametrize("optim", UNCAPTURABLE)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_optimizer_that_steps_outside(
    monkeypatch: pytest.MonkeyPatch, said: Any, optim: Any, accumulate: int
) -> None:
    """What cannot be captured is not: it has the bits of the plain step."""
    graph = assert_captured(
        monkeypatch, "mlp", UNCAPTURABLE[optim], schedule="cosine", clip=(1.0, None), accumulate=accumulate, epochs=5
    )
    assert graph.replays > 0
    assert said()[0].startswith("The step is captured without the step of the optimizer: ")


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw"])
def test_a_number_that_changes_all_the_time_keeps_the_optimizer_out(
    monkeypatch: pytest.MonkeyPatch, said: Any, optim: str
) -> None:
    graph = assert_captured(monkeypatch, "mlp", OPTIMS[optim], schedule="onecycle", epochs=6)
    number = "momentum" if optim == "sgd" else "betas"
    assert said()[0] == f"The step is captured without the step of the optimizer: {number} keeps changing."
    assert graph.replays > 10


@given(
    model=st.sampled_from(sorted(MODELS)),
    optim=st.sampled_from(sorted(OPTIMS)),
    schedule=st.sampled_from([None, *SCHEDULES]),
    accumulate=st.sampled_from([1, 2, 3]),
    clip=st.sampled_from([(None, None), (0.5, None), (None, 0.01)]),
    precision=st.sampled_from(["fp32", "bf16"]),
    batch=st.sampled_from([6, 15, 20]),
)
@settings(max_examples=40)
def test_any_settings(
    monkeypatch: pytest.MonkeyPatch,
    model: Any,
    optim: Any,
    schedule: Any,
    accumulate: int,
    clip: Any,
    precision: str,
    batch: int,
) -> None:
    """Also groups of batches and batches that are shorter at the end of an epoch."""
    more = {"schedule": schedule, "accumulate": accumulate, "clip": clip, "precision": precision, "batch": batch}
    assert_captured(monkeypatch, model, OPTIMS[optim], close=None, epochs=7, **more)


def test_half_precision_keeps_the_scaler_out(monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    graph = assert_captured(monkeypatch, "mlp", OPTIMS["adam"], precision="fp16", clip=(1.0, None), close=1e-3)
    assert graph.replays > 10
    reason = "precision=fp16 decides outside of a graph whether the optimizer steps"
    assert said()[0] == f"The step is captured without the step of the optimizer: {reason}."


def test_what_a_step_says_stays() -> None:
    """Outputs are no memory of the graph."""
    graph = RecordedGraph()
    model, data = MODELS["mlp"]
    _, state = drive(graph, model, OPTIMS["adam"], data)
    assert len(set(state["losses"].tolist())) > 15


def test_a_nest_of_a_batch() -> None:
    """Dicts, lists and tuples, and tensors that are laid out otherwise."""

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: Any, more: Any, mode: str = "tensor") -> Any:
            (y, (z,)) = more
            output = self.layer(x + z).squeeze(1)
            return {"loss": (output - y).square().mean(), "error": (output - y).abs().mean(), "output": output.max()}

    states = []
    for how in (None, RecordedGraph()):
        torch.manual_seed(0)
        model = Model()
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        step = step_of(model, optimizer)
        step = step if how is None else CapturedStep(step, how, dict(model.named_modules()))
        outputs = []
        for iteration in range(12):
            x = torch.full((4, 5), float(iteration)).T if iteration % 2 else torch.full((5, 4), 0.5)
            outputs.append(step({"x": x, "more": [torch.arange(5.0), (torch.ones(5, 4),)]}, iteration, 12))
        states.append({"model": model.state_dict(), "outputs": outputs})
    same(states[1], states[0], 1e-5)
    assert how.captures == 2
    assert list(outputs[-1]) == ["error", "output", "loss"]


# -- what cannot be captured -------------------------------------------------------------------------------------------


class Odd(MLP):
    """Does something that a graph cannot hold."""

    def __init__(self, what: Any) -> None:
        super().__init__(in_features=64, num_classes=3, hidden=[8])
        self.what = what
        self.calls = 0
        self.scale = 1.0
        self.register_buffer("average", torch.zeros(()))

    def train_step(self, batch: Any) -> Any:
        losses = super().train_step(batch)
        loss = losses["loss"]
        match self.what:
            case "item":
                loss = loss * 2.0 if loss.item() > 1 else loss
            case "count":
                self.calls += 1
            case "buffer":
                self.average = 0.9 * self.average + 0.1 * loss.detach()  # type: ignore[has-type]
            case "python":
                loss = loss * (1 + random.random())
            case "numpy":
                loss = loss * (1 + np.random.rand())
            case "mask":
                loss = loss + batch[0][batch[0] > 0].mean()
        return {"loss": loss * self.scale}


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("item", "the code waits for the device (aten._local_scalar_dense.default)"),
        ("mask", "the code waits for the device (aten.index.Tensor)"),
        ("count", "calls keeps changing"),
        ("buffer", "average keeps changing"),
        ("python", "the step draws random numbers on the CPU"),
        ("numpy", "the step draws random numbers on the CPU"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_model_that_cannot_be_captured(said: Any, what: str, reason: str, accumulate: int) -> None:
    states = []
    for how in (None, RecordedGraph()):
        random.seed(0)
        np.random.seed(0)
        step, state = drive(how, partial(Odd, what), OPTIMS["adam foreach"], pictures, accumulate=accumulate)
        states.append(state)
    assert step.refusal == reason
    assert said() == [f"The step is not captured: {reason}."]
    assert how.captures == 0
    same(states[1], states[0], 1e-4)
    assert all(state["step"].device == CPU for state in step.optimizer.state.values())


def test_a_capture_that_fails_has_done_nothing(monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    """The step is run as ever in its place, from the state before."""

    class Failing(RecordedGraph):
        def warm_up(self, function: Any) -> Any:
            return function(), None

    states = []
    for how in (None, Failing()):
        states.append(drive(how, partial(Odd, "item"), OPTIMS["adam"], pictures, accumulate=2)[1])
    assert said()[0].startswith("The step is not captured: CUDA error: operation not permitted")
    same(states[1], states[0], 1e-4)


def test_batches_that_are_no_tensors(said: Any) -> None:
    step, _ = drive(RecordedGraph(), *_lists())
    assert said() == ["The step is not captured: a batch contains something other than tensors on the device."]
    assert step.refusal is not None


def _lists() -> Any:
    class Model(MLP):
        def train_step(self, batch: Any) -> Any:
            return super().train_step((torch.as_tensor(batch[0].tolist()), batch[1]))

    def data(count: Any) -> Any:
        x, y = pictures(count)
        return x.numpy(), y

    return partial(Model, in_features=64, num_classes=3, hidden=[8]), OPTIMS["adam"], data


def test_many_shapes(said: Any) -> None:
    model = MLP(in_features=4, num_classes=2, hidden=[4])
    step = CapturedStep(
        step_of(model, torch.optim.Adam(model.parameters(), fused=True)), RecordedGraph(), dict(model.named_modules())
    )
    for size in range(1, 12):
        step((torch.randn(size, 4), torch.zeros(size, dtype=torch.int64)), 0, 1)
    assert said() == ["The step is not captured: the batches have more than 8 shapes."]


@pytest.mark.parametrize("place", [1, 3])
def test_batches_of_one_place_in_their_group(place: int) -> None:
    """No batch begins a group: the step has no gradients that graphs add to, and stays as it is."""
    outputs = []
    for how in (None, RecordedGraph()):
        torch.manual_seed(0)
        model = MODELS["mlp"][0](dropout=0.0)
        step = step_of(model, OPTIMS["adam"](model.parameters()), accumulate=4)
        step = step if how is None else CapturedStep(step, how, dict(model.named_modules()))
        outputs.append([step(pictures(6), place, 30) for _ in range(8)])
    same(outputs[1], outputs[0], 1e-5)


def test_shapes_are_forgotten_with_the_members_they_belong_to() -> None:
    """Batches of a stack become narrower whenever a member leaves; each width has a full and a smaller last batch."""
    model = MODELS["mlp"][0]()
    graph = RecordedGraph()
    step = CapturedStep(step_of(model, OPTIMS["adam"](model.parameters())), graph, dict(model.named_modules()))
    for members in range(9, 3, -1):
        for samples in (6, 3):
            for _ in range(WARM_UP + 1):
                step(pictures(members * samples), 0, 1)
        step.keep(torch.arange(members - 1))
    assert step.refusal is None
    assert graph.captures == 2 * 6


@pytest.mark.parametrize("first", [0, WARM_UP])
def test_an_output_that_is_not_on_the_device(said: Any, first: int) -> None:
    """A replay would leave it as it was. It is found before the capture, or while the step is captured."""

    class Counting(MLP):
        calls = 0

        def train_step(self, batch: Any) -> Any:
            Counting.calls += 1
            elsewhere = {"count": torch.zeros((), device="meta")} if Counting.calls > first else {}
            return super().train_step(batch) | elsewhere

    Counting.calls = 0
    step, _ = drive(RecordedGraph(), partial(Counting, 64, 3, [8]), OPTIMS["adam"], pictures, batch=45, epochs=7)
    assert said() == ["The step is not captured: the output 'count' is on meta, not on cpu."]
    assert step.refusal is not None


def test_a_compiled_model() -> None:
    """What `torch.compile` makes of a model, without graphs of its own, is captured like any model."""
    outputs = []
    for how in (None, RecordedGraph()):
        torch.manual_seed(0)
        model = MODELS["mlp"][0](dropout=0.0)
        model.compile(backend="aot_eager")
        step = step_of(model, OPTIMS["adam"](model.parameters()))
        step = step if how is None else CapturedStep(step, how, dict(model.named_modules()))
        outputs.append([step(pictures(6), 0, 1)["loss"] for _ in range(8)])
    assert how.replays == 8 - WARM_UP
    same(outputs[1], outputs[0], 1e-5)


# -- what changes ------------------------------------------------------------------------------------------------------


def changing(how: Any, change: Any, *, accumulate: int = 1) -> Any:
    """Train, with a change in the middle."""
    torch.manual_seed(0)
    model = Odd("nothing")
    optimizer = torch.optim.Adam(model.parameters(), fused=True, weight_decay=0.01)
    step = step_of(model, optimizer, accumulate=accumulate)
    step = step if how is None else CapturedStep(step, how, dict(model.named_modules()))
    x, y = pictures(8)
    losses = []
    for iteration in range(60):
        if iteration == 30:
            change(model, optimizer, step)
        losses.append(step((x, y), iteration, 60)["loss"])
    return {"model": model.state_dict(), "losses": torch.stack(losses), "optimizer": optimizer.state_dict()}


def scaled(model: Any, optimizer: Any, step: Any) -> None:
    model.scale = 3.0


def decayed(model: Any, optimizer: Any, step: Any) -> None:
    optimizer.param_groups[0].update(weight_decay=0.3, lr=0.03)


def frozen(model: Any, optimizer: Any, step: Any) -> None:
    next(model.parameters()).requires_grad_(False)


def moved(model: Any, optimizer: Any, step: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * 0.5


def loaded(model: Any, optimizer: Any, step: Any) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def guarded(model: Any, optimizer: Any, step: Any) -> None:
    step.precision = SkipNonFinite(step.precision, stacked=False, skipped=torch.zeros(1, dtype=torch.int64))


def clipped(model: Any, optimizer: Any, step: Any) -> None:
    step.clip = make_clip(0.01, None)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("change", [scaled, decayed, frozen, moved, loaded, guarded, clipped])
def test_a_change_is_followed(change: Any, accumulate: int) -> None:
    graph = RecordedGraph()
    same(changing(graph, change, accumulate=accumulate), changing(None, change, accumulate=accumulate), 1e-4)
    kinds = 1 if accumulate == 1 else 3
    assert graph.captures == 2 * kinds


@pytest.mark.parametrize("uncaptured", [False, True])
def test_parameters_that_join_the_optimizer_are_in_the_next_capture(uncaptured: bool) -> None:
    def run(how: Any) -> tuple[Any, nn.Module]:
        torch.manual_seed(0)
        model = MLP(in_features=64, num_classes=3, hidden=[8, 8])
        optimizer = torch.optim.SGD(model.net[5:].parameters(), lr=0.05, momentum=0.9, fused=not uncaptured)
        step = step_of(model, optimizer, clip=(0.5, None))
        if how is not None:
            step = CapturedStep(step, how, dict(model.named_modules()))
        for index in range(24):
            if index == 12:  # with gradients from the beginning, so that only the optimizer's groups change
                optimizer.add_param_group({"params": list(model.net[:5].parameters())})
            if index <= 12:
                model.zero_grad()
            x, y = pictures(6)
            step((x, y), index, 24)
        return step, model

    graph = RecordedGraph()
    (step, model), (_, plain) = run(graph), run(None)
    assert step.refusal is None
    assert (graph.captures, graph.replays) == (2, 2 * (12 - WARM_UP))
    same(model.state_dict(), plain.state_dict(), 1e-5)
