"""The table holds what torch's own schedulers give, however its rows are asked for."""

from __future__ import annotations

import copy
import doctest
import inspect
import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import calls
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

import trainyard.schedules.schedule
from trainyard.config.annotations import DURATIONS
from trainyard.errors import ConfigError
from trainyard.schedules import Schedule
from trainyard.schedules.schedule import BLOCK

CONF = Path(__file__).parents[2] / "conf" / "schedule"
LRS = [0.1, 0.02, 0.3]
OPTIMIZERS = {
    "sgd": partial(SGD, momentum=0.9, weight_decay=1e-4),
    "adam": partial(Adam, betas=(0.8, 0.99)),
    "adamw": partial(AdamW, weight_decay=0.05),
}


def optimizer_of(name: str = "sgd", lrs: list[float] = LRS) -> Optimizer:
    return OPTIMIZERS[name]([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs])


def from_conf(option: str, **changes: Any) -> Schedule:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{option}.yaml"), changes), _convert_="all")


def by_hand(make: Any, optimizer: Optimizer, length: int) -> list[list[dict[str, Any]]]:
    """The groups as torch's own loop would have them: step the optimizer, step the scheduler."""
    scheduler = make(optimizer)
    rows = []
    for index in range(length):
        if index:
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        rows.append(
            [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        )
    return rows


def assert_same(row: list[dict[str, Any]], expected: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """The groups, once `row` is written over what they held `before`, are the ones `expected`, to the bit."""
    for values, wanted, held in zip(row, expected, before, strict=True):
        after = {**held, **values}
        assert after == {key: wanted[key] for key in held}


def assert_table(schedule: Schedule, make: Any, length: int, name: str = "sgd") -> None:
    schedule.bind(optimizer_of(name), length=length)
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer_of(name).param_groups]
    for index, expected in enumerate(by_hand(make, optimizer_of(name), length)):
        assert_same(schedule.row(index), expected, before)


def warmed(rest: Any, length: int, warmup: int, factor: float = 1e-3) -> Any:
    """`rest(optimizer, length)` after a warm-up, as one writes it with torch alone."""

    def make(optimizer: Optimizer) -> LRScheduler:
        if not warmup:
            return rest(optimizer, length)
        first = LinearLR(optimizer, start_factor=factor, total_iters=warmup)
        return SequentialLR(optimizer, [first, rest(optimizer, length - warmup)], [warmup])

    return make


BY_HAND = {
    "step": lambda o, n: StepLR(o, max(1, round(0.3334 * n)), 0.1),
    "multistep": lambda o, n: MultiStepLR(o, [max(1, min(n - 1, round(s * n))) for s in (0.5, 0.75)], 0.1),
    "exponential": lambda o, n: ExponentialLR(o, 0.95),
    "cosine": lambda o, n: CosineAnnealingLR(o, n, 0),
    "warmup_cosine": lambda o, n: CosineAnnealingLR(o, n, 0),
    "poly": lambda o, n: PolynomialLR(o, n, 0.9),
    "onecycle": lambda o, n: OneCycleLR(o, LRS, total_steps=n),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("by", "length"), [("epoch", 1), ("epoch", 2), ("epoch", 9), ("iter", 2 * BLOCK + 77)])
@pytest.mark.parametrize("option", BY_HAND)
def test_every_option_equals_torch(option: str, by: Any, length: int, name: str) -> None:
    schedule = from_conf(option, by=by)
    assert schedule.by == by
    warmup = min(round(0.05 * length), length - 1) if option == "warmup_cosine" else 0
    assert_table(schedule, warmed(BY_HAND[option], length, warmup), length, name)
    assert not schedule.constant


@pytest.mark.parametrize("option", ["step", "multistep", "exponential", "cosine", "poly"])
@pytest.mark.parametrize(("warmup", "length", "units"), [(5, 40, 5), (0.1, 40, 4), (0.01, 40, 0), (0.1, 3000, 300)])
def test_any_option_takes_a_warm_up(option: str, warmup: float, length: int, units: int) -> None:
    # Shares in the arguments are shares of the part that the warm-up leaves.
    schedule = from_conf(option, warmup=warmup, warmup_factor=0.25)
    assert_table(schedule, warmed(BY_HAND[option], length, units, 0.25), length)


def test_constant_changes_nothing_and_may_be_skipped() -> None:
    schedule = from_conf("constant")
    assert schedule.constant
    schedule.bind(optimizer_of(), length=10)
    assert schedule.constant
    assert schedule.row(0) == schedule.row(7) == schedule.row(99) == [{}, {}, {}]


def test_constant_with_a_warm_up() -> None:
    schedule = from_conf("constant", warmup=4, warmup_factor=0.1)
    assert not schedule.constant
    assert_table(schedule, lambda o: LinearLR(o, 0.1, total_iters=4), 12)


def test_a_warm_up_that_rounds_to_nothing_leaves_a_constant() -> None:
    schedule = from_conf("constant", warmup=0.01)
    schedule.bind(optimizer_of(), length=3)
    assert schedule.constant
    assert schedule.row(2) == [{}, {}, {}]


def test_the_documented_defaults_of_the_configs() -> None:
    units = {path.stem: OmegaConf.load(path).get("by", "none") for path in CONF.glob("*.yaml")}
    assert set(units) == {*BY_HAND, "constant", "plateau", "several"}
    assert units["onecycle"] == units["warmup_cosine"] == "iter"


SEQUENCES = [
    ([partial(ConstantLR, factor=0.1, total_iters="auto"), partial(ExponentialLR, gamma=0.9)], [20]),
    ([partial(LinearLR, total_iters="auto"), partial(CosineAnnealingLR, T_max="auto", eta_min=1e-4)], [0.25]),
    (
        [
            partial(LinearLR, start_factor=0.01, total_iters="auto"),
            partial(CosineAnnealingLR, T_max="auto"),
            partial(PolynomialLR, total_iters="auto", power=2.0),
            partial(MultiStepLR, milestones=[3, 5], gamma=0.5),
        ],
        [0.1, 30, 0.75],
    ),
    ([partial(StepLR, step_size=7), partial(CosineAnnealingWarmRestarts, T_0=10, T_mult=2)], [15]),
    ([partial(LinearLR, total_iters="auto"), partial(OneCycleLR, max_lr="auto", total_steps="auto")], [10]),
]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("number", range(len(SEQUENCES)))
def test_a_sequence_equals_sequential_lr(number: int, name: str) -> None:
    length = 60
    parts, milestones = SEQUENCES[number]
    whole = [round(m * length) if isinstance(m, float) else m for m in milestones]  # type: ignore[attr-defined]
    lengths = [end - begin for begin, end in zip([0, *whole], [*whole, length], strict=True)]

    def make(optimizer: Optimizer) -> LRScheduler:
        schedulers = []
        for part, span in zip(parts, lengths, strict=True):
            auto = {key: span for key, value in part.keywords.items() if value == "auto"}  # type: ignore[attr-defined]
            if "max_lr" in auto:
                auto["max_lr"] = LRS
            schedulers.append(part.func(optimizer, **{**part.keywords, **auto}))  # type: ignore[attr-defined]
        return SequentialLR(optimizer, schedulers, whole)

    assert_table(Schedule(parts, milestones=milestones), make, length, name)


def test_a_sequence_after_a_warm_up_keeps_its_milestones() -> None:
    schedule = Schedule(
        [partial(CosineAnnealingLR, T_max="auto"), partial(ConstantLR, total_iters="auto")], milestones=[30], warmup=10
    )

    def make(o: Optimizer) -> LRScheduler:
        parts = [LinearLR(o, 1e-3, total_iters=10), CosineAnnealingLR(o, 20), ConstantLR(o, total_iters=30)]
        return SequentialLR(o, parts, [10, 30])

    assert_table(schedule, make, 60)


def test_several_at_once_equal_chained_scheduler() -> None:
    schedule = Schedule([partial(ConstantLR, factor=0.1, total_iters=20), partial(ExponentialLR, gamma=0.9)])
    assert_table(schedule, lambda o: ChainedScheduler([ConstantLR(o, 0.1, total_iters=20), ExponentialLR(o, 0.9)]), 50)


def test_cyclic_and_lambda() -> None:
    schedule = Schedule(partial(CyclicLR, base_lr=1e-3, max_lr="auto", step_size_up=0.1, mode="exp_range", gamma=0.9))
    assert_table(schedule, lambda o: CyclicLR(o, 1e-3, LRS, step_size_up=10, mode="exp_range", gamma=0.9), 100)
    assert_table(Schedule(partial(LambdaLR, lr_lambda=lambda i: 0.9**i)), lambda o: LambdaLR(o, lambda i: 0.9**i), 30)


def test_a_function_may_make_the_scheduler() -> None:
    def made(optimizer: Optimizer, steps: int, gamma: float) -> LRScheduler:
        assert gamma == -1  # its own affair: only the arguments of torch's schedulers are known
        return LinearLR(optimizer, total_iters=steps)

    assert_table(Schedule(partial(made, steps="auto", gamma=-1)), lambda o: LinearLR(o, total_iters=30), 30)


def test_rows_hold_only_what_the_schedule_changes() -> None:
    for name, cycled in (("sgd", "momentum"), ("adam", "betas")):
        for option, keys in (("cosine", {"lr"}), ("onecycle", {"lr", cycled})):
            schedule = from_conf(option)
            schedule.bind(optimizer_of(name), length=50)
            assert all(set(group) == keys for index in (0, 49) for group in schedule.row(index))


@pytest.mark.parametrize(
    "make",
    [partial(SGD, lr=0.1), partial(Adagrad, lr=0.1), partial(RMSprop, lr=0.1)],
    ids=lambda make: make.func.__name__,
)
def test_onecycle_leaves_momentum_alone_where_there_is_none(make: Any) -> None:
    schedule = from_conf("onecycle")
    schedule.bind(make([torch.nn.Parameter(torch.ones(1))]), length=10)
    assert set(schedule.row(3)[0]) == {"lr"}


def test_the_peak_of_onecycle_is_each_groups_own_learning_rate() -> None:
    schedule = from_conf("onecycle")
    schedule.bind(optimizer_of(), length=100)
    assert [max(schedule.row(i)[g]["lr"] for i in range(100)) for g in range(3)] == pytest.approx(LRS, rel=1e-12)


def test_the_last_row_holds_beyond_the_end() -> None:
    for option in BY_HAND:
        schedule = from_conf(option)
        schedule.bind(optimizer_of(), length=21)
        last = copy.deepcopy(schedule.row(20))
        assert schedule.row(21) == schedule.row(22) == schedule.row(10**9) == last


def test_nothing_of_the_real_optimizer_is_touched_and_nobody_warns() -> None:
    optimizer = optimizer_of("adam")
    step, groups = optimizer.step, [dict(group) for group in optimizer.param_groups]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for parts, milestones in SEQUENCES:
            schedule = Schedule(parts, milestones=milestones)
            schedule.bind(optimizer, length=60)
            schedule.row(59)
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        assert group.pop("params") is before.pop("params")
        assert group == before
    assert optimizer.step == step


def test_learning_rates_in_tensors_and_groups_scheduled_before() -> None:
    tensor = SGD([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.5))
    schedule = from_conf("cosine")
    schedule.bind(tensor, length=10)
    assert schedule.row(0) == [{"lr": 0.5}]
    assert tensor.param_groups[0]["lr"] == 0.5
    scheduled = SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.01, "initial_lr": 0.5}])
    schedule.bind(scheduled, length=10)
    assert schedule.row(0) == [{"lr": 0.5}]


def test_named_parameters() -> None:
    optimizer = SGD([("weight", torch.nn.Parameter(torch.ones(1)))], lr=1.0)
    schedule = from_conf("poly")
    schedule.bind(optimizer, length=10)
    assert schedule.row(0) == [{"lr": 1.0}]


# --- However the rows are asked for


LENGTH = 3 * BLOCK + 100
RANDOM: dict[str, Any] = {
    "onecycle": lambda: from_conf("onecycle"),
    "warmup_cosine": lambda: from_conf("warmup_cosine"),
    "multistep": lambda: from_conf("multistep", warmup=0.2),
    "together": lambda: Schedule([partial(ExponentialLR, gamma=0.999), partial(LinearLR, total_iters="auto")]),
    "cyclic": lambda: Schedule(partial(CyclicLR, base_lr=1e-3, max_lr="auto", step_size_up=300, mode="triangular2")),
    "function": lambda: Schedule(partial(LambdaLR, lr_lambda=lambda i: 1 / (1 + i))),
}
TABLES: dict[str, list[Any]] = {}


def table(kind: str) -> list[Any]:
    if kind not in TABLES:
        schedule = RANDOM[kind]()
        schedule.bind(optimizer_of("adamw"), length=LENGTH)
        TABLES[kind] = [copy.deepcopy(schedule.row(i)) for i in range(LENGTH)]
    return TABLES[kind]


@settings(max_examples=12)
@given(kind=st.sampled_from(sorted(RANDOM)), indices=st.lists(st.integers(0, LENGTH + 50), max_size=6))
def test_any_order_of_rows(kind: str, indices: list[int]) -> None:
    schedule = RANDOM[kind]()
    schedule.bind(optimizer_of("adamw"), length=LENGTH)
    for index in indices:
        assert schedule.row(index) == table(kind)[min(index, LENGTH - 1)]


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """`state` as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@settings(max_examples=16)
@given(
    kind=st.sampled_from(sorted(RANDOM)),
    stop=st.integers(0, LENGTH - 1),
    more=st.lists(st.integers(0, LENGTH - 1), max_size=3),
)
def test_a_resumed_table_goes_on_as_if_nothing_had_happened(kind: str, stop: int, more: list[int]) -> None:
    first = RANDOM[kind]()
    first.bind(optimizer_of("adamw"), length=LENGTH)
    first.row(stop)
    state = saved(first.state_dict())
    second = RANDOM[kind]()
    second.bind(optimizer_of("adamw"), length=LENGTH)
    second.load_state_dict(state)
    for index in (stop, *more):
        assert second.row(index) == table(kind)[index]
    second.load_state_dict(state)  # and once more, from wherever it stands
    assert second.row(stop) == table(kind)[stop]
    assert first.row(stop) == table(kind)[stop]


def test_a_resume_far_into_a_run_costs_what_one_at_its_begin_costs() -> None:
    def resumed(index: int) -> int:
        first = from_conf("onecycle")
        first.bind(optimizer_of("sgd", [0.1]), length=2_000_000)
        expected = copy.deepcopy(first.row(index))
        state = saved(first.state_dict())
        second = from_conf("onecycle")
        optimizer = optimizer_of("sgd", [0.1])

        def resume() -> None:
            second.bind(optimizer, length=2_000_000)
            second.load_state_dict(state)
            assert second.row(index) == expected

        count = calls(resume)
        assert second.row(index + BLOCK) == first.row(index + BLOCK)
        return count

    assert resumed(500 * BLOCK) < 1.5 * resumed(BLOCK)


def test_another_configuration_passes_the_state_over() -> None:
    for changes, length in (({}, 500), ({"scheduler": {"eta_min": 0.01}}, 400), ({"warmup": 5}, 400)):
        first = from_conf("cosine")
        first.bind(optimizer_of(), length=400)
        first.row(300)
        second, fresh = from_conf("cosine", **changes), from_conf("cosine", **changes)
        for schedule in (second, fresh):
            schedule.bind(optimizer_of(), length=length)
        second.load_state_dict(saved(first.state_dict()))
        assert second.row(300) == fresh.row(300) != first.row(300)


class Decay(LRScheduler):
    """A user's own: lowers the learning rate, and after 1500 steps the weight decay; its state is no plain data."""

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.rule = lambda step: 0.5 if step % 100 == 0 else 1.0
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        for group in self.optimizer.param_groups:
            if self.last_epoch == 1500:
                group.update(weight_decay=group["weight_decay"] / 2)
        return [group["lr"] * self.rule(self.last_epoch) for group in self.optimizer.param_groups]


def test_a_scheduler_of_ones_own() -> None:
    assert_table(Schedule(partial(Decay)), Decay, 2000)
    schedule = Schedule(partial(Decay))
    schedule.bind(optimizer_of(), length=2000)
    assert set(schedule.row(1400)[0]) == {"lr"}
    late = copy.deepcopy(schedule.row(1600))
    assert set(late[0]) == {"lr", "weight_decay"}
    assert schedule.row(0)[0]["weight_decay"] == 1e-4  # going back takes it back
    schedule.row(1600)
    state = saved(schedule.state_dict())
    resumed = Schedule(partial(Decay))
    resumed.bind(optimizer_of(), length=2000)
    resumed.load_state_dict(state)
    assert resumed.row(1600) == late


def test_rows_need_a_bind_and_count_from_zero() -> None:
    schedule = from_conf("cosine")
    with pytest.raises(RuntimeError, match="bind"):
        schedule.row(0)
    schedule.bind(optimizer_of(), length=5)
    with pytest.raises(IndexError):
        schedule.row(-1)


def test_every_scheduler_of_torch_has_its_durations_known() -> None:
    taken = {
        name
        for make in vars(torch_schedulers).values()
        if isinstance(make, type) and issubclass(make, LRScheduler)
        for name in inspect.signature(make).parameters
    }
    assert set(DURATIONS) <= taken


def test_the_examples_run() -> None:
    assert doctest.testmod(trainyard.schedules.schedule).failed == 0


def test_what_lies_beyond_the_run_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        schedule = Schedule(partial(MultiStepLR, milestones=[3, 83]), by="epoch")
        schedule.bind(optimizer_of(), length=11)
    (record,) = caplog.records
    assert record.getMessage() == (
        "schedule: 83 (milestones of MultiStepLR) is never reached, "
        "because this scheduler's part of the run ends after 11."
    )
    caplog.clear()
    Schedule(partial(CosineAnnealingLR, T_max=11), by="epoch").bind(optimizer_of(), length=11)
    assert not caplog.records


def test_what_is_converted_to_iterations_is_told_in_epochs(caplog: pytest.LogCaptureFixture) -> None:
    def bind(make: Any, length: int) -> None:
        schedule = Schedule(make, convert_to_iter_based=True)
        schedule.bind(optimizer_of(), length=length, unit="epoch", epoch_length=4)

    bind(partial(MultiStepLR, milestones=[3, 85]), 12 * 4)
    (record,) = caplog.records
    assert record.getMessage() == (
        "schedule: 85 (milestones of MultiStepLR) is never reached, "
        "because this scheduler's part of the run ends after 12."
    )
    cycle = partial(OneCycleLR, max_lr="auto", cycle_momentum=False)
    with pytest.raises(ConfigError, match=r'total_steps: 5 is invalid. Expected "auto", or at least 12, the length'):
        bind(partial(cycle, total_steps=5), 12 * 4)
    with pytest.raises(ConfigError, match=r"With max_lr=.*, total_steps=3, pct_start=0.0833.*, a phase"):
        bind(partial(cycle, total_steps=3, pct_start=1 / 12), 3 * 4)


@given(length=st.integers(1, 2500), index=st.integers(0, 2600), groups=st.integers(1, 3))
@settings(max_examples=25)
def test_rows_ahead_are_the_rows(length: int, index: int, groups: int) -> None:
    """And to ask for them makes no more of the table than the row itself does."""
    schedule, other = (Schedule(partial(CosineAnnealingLR, T_max="auto"), by="iter") for _ in range(2))
    for each in (schedule, other):
        each.bind(optimizer_of(lrs=[0.1] * groups), length=length)
    ahead = schedule.ahead(index)
    assert len(ahead) >= 1
    expected = [other.row(place) for place in range(index, index + len(ahead))]
    assert list(ahead) == expected
    assert schedule.state_dict()["first"] == min(index, length - 1) // (rows := max(BLOCK // groups, 64)) * rows


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (1, "milestones: [5, 9] is invalid. Expected null, because milestones are the starts of further schedulers."),
        (2, "milestones: [5, 9] is invalid. Expected a list of 1 milestone, one for each scheduler after the first."),
        (4, "milestones: [5, 9] is invalid. Expected a list of 3 milestones, one for each scheduler after the first."),
    ],
)
def test_the_number_of_milestones(count: int, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Schedule([partial(StepLR, step_size=2)] * count, milestones=[5, 9])
    assert str(error.value) == told


def test_a_fraction_is_one_of_the_length_of_the_scheduler() -> None:
    with pytest.raises(ConfigError, match=r"step_size: 1.5 is invalid.* a fraction of the length of this scheduler in"):
        Schedule(partial(StepLR, step_size=1.5))
    with pytest.raises(ConfigError, match=r"warmup: 1.5 is invalid.* a fraction of the run in"):
        Schedule(partial(StepLR, step_size=1), warmup=1.5)
