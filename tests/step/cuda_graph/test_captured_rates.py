"""A captured step takes its learning rates from a table on the device, and the rates are the ones that the host has."""

from __future__ import annotations

import copy
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_training import SCHEDULES, pictures, same, step_of
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_graph import RecordedGraph
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR
from torch.utils._python_dispatch import TorchDispatchMode

from trainyard.hooks import Checkpoint, Hook, LRFinder, Norms, ParamSchedule
from trainyard.models import MLP
from trainyard.runner import Runner
from trainyard.schedules import Schedule, Several
from trainyard.step.clip import make_clip
from trainyard.step.cuda_graph import rate_table
from trainyard.step.cuda_graph.captured_step import WARM_UP, CapturedStep
from trainyard.step.cuda_graph.graph_hyperparameters import TorchGraphHyperparameters

pytestmark = pytest.mark.usefixtures("capturable_on_the_cpu")

COSINE = partial(CosineAnnealingLR, T_max="auto")
TABLES = {
    "cosine": lambda: Schedule(COSINE, by="iter"),
    "warm-up": lambda: Schedule(partial(StepLR, step_size=7, gamma=0.5), warmup=9, by="iter"),
    "window": lambda: Schedule(COSINE, begin=5, end=25, by="iter"),
    "jumps": lambda: Schedule(partial(LambdaLR, lr_lambda=lambda row: (row * 7919) % 13 / 13), by="iter"),
    "both units": lambda: Several(
        [Schedule(COSINE, by="iter"), Schedule(partial(StepLR, step_size=2, gamma=0.5), by="epoch")]
    ),
    "weight decay": lambda: Several([Schedule(COSINE, end=20, by="iter"), Schedule(COSINE, param="weight_decay")]),
}
OPTIMS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "adam foreach": partial(torch.optim.Adam, foreach=True),
}


class Sent(TorchDispatchMode):
    """What the host has sent to the device besides the step, iteration by iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[-1].append(function)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A list a step of the operators that bringing the numbers to the device took."""
    mode, refresh = Sent(), TorchGraphHyperparameters.refresh

    def watched(self: Any) -> None:
        with mode:
            mode.calls.append([])
            refresh(self)

    monkeypatch.setattr(TorchGraphHyperparameters, "refresh", watched)
    return mode.calls


def trained(
    foreseen: Any,
    events: Any,
    *,
    table: str = "cosine",
    optim: str = "adam",
    accumulate: int = 1,
    double: bool = False,
    length: int = 40,
    graph: Any = None,
) -> Any:
    """Train a model, in two parameter groups, through things that happen in certain iterations."""
    torch.manual_seed(0)
    model = MLP(in_features=64, num_classes=3, hidden=[6])
    model = model.double() if double else model
    first, *others = model.parameters()
    optimizer = OPTIMS[optim]([{"params": [first], "lr": 0.01}, {"params": others}], lr=0.003, weight_decay=0.01)
    rows = TABLES[table]()
    rows.bind(optimizer, length=length, epoch_length=8)
    step = CapturedStep(step_of(model, optimizer, accumulate=accumulate), graph or RecordedGraph(), {"": model})
    now = 0
    if foreseen:
        step.foresee(lambda: rows.ahead(now))
    x, y = pictures(6)
    x = x.double() if double else x
    found, by_hand = [], 0
    for position in range(length):
        for event, number in events.get(position, ()):
            match event:
                case "jump":  # the schedule goes on elsewhere
                    now = number
                case "by hand":  # somebody has the last word, for a while
                    by_hand = number
                case "loaded":
                    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                    step.load_state_dict(copy.deepcopy(step.state_dict()))
                case "measured":
                    step.clip = make_clip(0.1, None)
                case "fails":
                    with suppress(RuntimeError):
                        step((x[:, :, :3], y), position, length)
                    for parameter in model.parameters():
                        parameter.grad = None
                case "skipped":
                    now += 1
        for group, row in zip(optimizer.param_groups, rows.row(now), strict=True):
            group.update(row)
            if by_hand:
                group["lr"] *= 0.5 if number % 2 else 1 / by_hand
        by_hand = max(0, by_hand - 1)
        found.append(step((x, y), position, length)["loss"])
        if any(event == "measured" for event, _ in events.get(position, ())):
            step.clip = step._own_clip
        now += 1
        assert all(type(group["lr"]) is float for group in optimizer.param_groups)
    return {"losses": torch.stack(found), "model": model.state_dict(), "optimizer": optimizer.state_dict()}


EVENTS = st.dictionaries(
    st.integers(0, 39),
    st.lists(
        st.tuples(st.sampled_from(["jump", "by hand", "loaded", "measured", "fails", "skipped"]), st.integers(1, 39)),
        min_size=1,
        max_size=2,
    ),
    max_size=6,
)


@given(
    events=EVENTS,
    table=st.sampled_from(sorted(TABLES)),
    optim=st.sampled_from(sorted(OPTIMS)),
    accumulate=st.sampled_from([1, 3]),
    double=st.booleans(),
    rows=st.sampled_from([3, 16, 1024]),
)
@settings(max_examples=25)
def test_whatever_happens_the_rates_are_the_hosts(
    monkeypatch: pytest.MonkeyPatch, events: Any, table: Any, optim: Any, accumulate: int, double: bool, rows: int
) -> None:
    """The bits are those of a step to which the host sends every rate that changes."""
    more = {"table": table, "optim": optim, "accumulate": accumulate, "double": double}
    with monkeypatch.context() as patch:
        patch.setattr(rate_table, "ROWS", rows)
        found = trained(True, events, **more)
    same(found, trained(False, events, **more))


@pytest.mark.parametrize("table", ["cosine", "warm-up", "window", "jumps", "both units"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_nothing_is_sent_with_a_step(sent: Any, table: str, accumulate: int) -> None:
    graph = RecordedGraph()
    trained(True, {}, table=table, accumulate=accumulate, length=60, graph=graph)
    assert graph.replays > 40
    writes = [index for index, calls in enumerate(sent) if any("copy_" in str(call) for call in calls)]
    assert len(writes) == 1  # the table itself, once
    assert not any(sent[writes[0] + 1 :])


def test_without_a_table_it_is(sent: Any) -> None:
    """What the test above counts is there to be counted."""
    trained(False, {}, length=60)
    assert sum(map(bool, sent)) > 50


def test_a_table_that_is_used_up_is_followed_by_the_next(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_table, "ROWS", 16)
    trained(True, {}, length=60)
    assert sum(map(bool, sent)) == 4


def test_rates_set_by_hand_are_sent_once(sent: Any) -> None:
    """Those of a stretch that differ from the schedule, and the schedule's own when it is right again."""
    rates = [0.1] * 5 + [0.02] * 10 + [0.1] * 15
    table = rate_table.RateTable([torch.float32], torch.device("cpu"), lambda: [[{"lr": 0.1}]] * 12)
    seen, writes = [], []
    for rate in rates:
        mode = Sent()
        mode.calls.append([])
        with mode:
            table.refresh([rate])
        table.advance()
        table.stepped()
        writes.append(bool(mode.calls[0]))
        seen.append(table.rates[0].item())
    assert seen == torch.tensor(rates).tolist()
    assert [index for index, wrote in enumerate(writes) if wrote] == [0, 5, 15, 27]


def test_a_step_that_was_not_finished_leaves_no_doubt() -> None:
    """The counter may have moved or not: the table begins anew."""
    table = rate_table.RateTable([torch.float32], torch.device("cpu"), lambda: rows[done:])
    rows, done, seen = [[{"lr": float(rate)}] for rate in range(20)], 0, []
    for rate in range(20):
        done = rate
        for whole in (False, True) if rate % 7 == 4 else (True,):
            table.refresh([float(rate)])
            table.advance()
            if whole:
                table.stepped()
        seen.append(table.rates[0].item())
    assert seen == list(range(20))


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(parts: Any, tmp_path: Path) -> Any:
    parts["optim"] |= {"fused": True}
    schedules = {
        "cosine": lambda: Schedule(SCHEDULES["cosine"], by="iter"),
        "epoch": lambda: Schedule(SCHEDULES["cosine"], by="epoch"),
        "warm-up": lambda: Several(
            [
                Schedule(partial(torch.optim.lr_scheduler.LinearLR, total_iters="auto"), end=9, by="iter"),
                Schedule(SCHEDULES["cosine"], by="epoch"),
            ]
        ),
    }

    def runs(name: Any, *, schedule: str = "cosine", foreseen: bool = True, hooks: Any = (dict,), **more: Any) -> Any:
        graph = RecordedGraph()
        for others in hooks:  # one after another, each from where the one before stopped
            given = {"param_schedule": ParamSchedule(), **others()}
            arguments = parts | {"hooks": given, "schedule": schedules[schedule](), **more}
            runner = Runner(**arguments, work_dir=tmp_path / name, resume=True)
            runner.prepare()
            step = CapturedStep(runner.step, graph, dict(runner.model.named_modules()))
            runner.__dict__["step"] = step
            if not foreseen:
                step.foresee = lambda foresight: None  # type: ignore[method-assign]
            runner.train()
            assert (step._foresight is not None) == (foreseen and schedule != "epoch")
        return runner, graph

    return runs


class Stop(Hook):
    priority = "LOWEST"

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == 7:
            runner.interrupt()


class Halve(Hook):
    """Has the last word on some iterations."""

    priority = "LOW"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        if runner.iter % 4 == 3:
            for group in runner.optimizer.param_groups:
                group["lr"] /= 2


@pytest.mark.parametrize("schedule", ["cosine", "epoch", "warm-up"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "hooks",
    [
        (dict,),
        (lambda: {"checkpoint": Checkpoint(), "stop": Stop()}, lambda: {"checkpoint": Checkpoint()}),
        (lambda: {"halve": Halve(), "norms": Norms(interval=3)},),
    ],
    ids=["plain", "resumed", "disturbed"],
)
def test_a_run(run: Any, schedule: str, accumulate: int, hooks: Any) -> None:
    states = []
    for foreseen in (False, True):
        more = {"schedule": schedule, "accumulate": accumulate, "clip_grad_norm": 0.5}
        runner, graph = run(str(foreseen), foreseen=foreseen, hooks=hooks, **more)
        states.append((runner.model.state_dict(), runner.optimizer.state_dict()))
        assert graph.replays > 0
    same(states[1], states[0])


def test_a_run_sends_its_table_once(run: Any, sent: Any) -> None:
    _, graph = run("run")
    assert graph.replays > WARM_UP
    assert sum(map(bool, sent)) == 1


def test_a_search_for_a_rate(run: Any) -> None:
    """It trains with rates of its own, in iteration 0."""
    curves = []
    for foreseen in (False, True):
        finder = LRFinder(iterations=20)
        run(str(foreseen), foreseen=foreseen, hooks=(partial(dict, finder=finder),))
        curves.append(finder.curves[0].loss)
    assert curves[0] == curves[1]
