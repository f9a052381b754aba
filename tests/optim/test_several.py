"""A model with several optimizers: turns, checkpoints, schedules, and the GAN on the rings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from interrupting import InterruptAt
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import SGD, Adam

from trainyard.config.schema import check
from trainyard.data import ArrayData
from trainyard.errors import ConfigError, TrainyardError, Unfusable
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Hook
from trainyard.metrics.energy_distance import EnergyDistance
from trainyard.models import BaseModel
from trainyard.optim import OptimizerDict, ScheduleDict, build_several
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from trainyard.schedules import Plateau, Schedule

ROOT = Path(__file__).parents[2]


class Duel(BaseModel):
    """Two layers, each of which reads the other: `a` goes down what `b` goes up."""

    optimizer_groups = {"a": "a", "b": ["b.weight", "b.b*"]}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 1)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def train_steps(self, batch: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
        (x,) = batch
        yield "b", {"loss": -self.b(self.a(x)).tanh().mean(), "size": self.b.weight.norm()}
        yield "a", {"loss": self.b(self.a(x)).tanh().mean(), "loss_size": 0.01 * self.a.weight.square().sum()}

    def forward(self, x: Tensor, mode: str = "tensor") -> Tensor:
        return self.b(self.a(x))


def numbers() -> ArrayData:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    return ArrayData({"train": (x,)}, {}, batch_size=8)


OPTIM = {"a": partial(SGD, lr=0.1, momentum=0.9), "b": partial(Adam, lr=0.02)}


def runner(model: nn.Module | None = None, **more: Any) -> Runner:
    settings = {"optim": OPTIM, "hooks": {}, "loop": EpochBasedTrainLoop(3), "device": "cpu", "data": numbers()}
    return Runner(model or Duel(), **(settings | more))


def trained(model: nn.Module | None = None, **more: Any) -> Runner:
    made = runner(model, **more)
    made.train()
    return made


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for (name, tensor), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name


class Outputs(Hook):
    def __init__(self) -> None:
        self.all: list[dict[str, Tensor]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        assert all(parameter.grad is None for parameter in runner.model.parameters())
        self.all.append(outputs)


@pytest.mark.parametrize("clip", [{}, {"clip_grad_norm": 0.05}, {"clip_grad_value": 0.01}])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_is_the_one_written_by_hand(clip: dict[str, float], accumulate: int, precision: str) -> None:
    made = trained(**clip, accumulate=accumulate, precision=precision)

    model = Duel()
    nets = {"a": model.a, "b": model.b}
    optimizers = {
        "a": SGD(model.a.parameters(), lr=0.1, momentum=0.9, fused=None),
        "b": Adam(model.b.parameters(), lr=0.02),
    }
    for epoch in range(3):
        gathered: dict[str, list[Any]] = {"a": [], "b": []}
        batches = list(numbers().loader("train", seed=0, device=torch.device("cpu")).batches(epoch))
        for index, batch in enumerate(batches):
            within = index % accumulate
            size = min(accumulate, len(batches) - (index - within))
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                turns = model.train_steps(batch)
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    name, terms = next(turns)
                net = nets[name]
                loss = terms["loss"] + terms.get("loss_size", 0)
                grads = torch.autograd.grad(loss / size, list(net.parameters()))
                gathered[name].append(grads)
                if within + 1 == size:
                    for parameter, *parts in zip(net.parameters(), *gathered.pop(name), strict=True):
                        parameter.grad = sum(parts[1:], parts[0])
                    gathered[name] = []
                    if "clip_grad_norm" in clip:
                        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
                    if "clip_grad_value" in clip:
                        nn.utils.clip_grad_value_(net.parameters(), 0.01)
                    optimizers[name].step()
    for one, other in zip(made.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_a_step_gives() -> None:
    hook = Outputs()
    trained(hooks={"outputs": hook}, clip_grad_norm=1.0)
    first = hook.all[0]
    assert sorted(first) == ["a/grad_norm", "a/loss", "a/loss_size", "b/grad_norm", "b/loss", "b/size", "loss"]
    assert first["loss"] == first["a/loss"] + first["b/loss"]
    assert not any(value.requires_grad for value in first.values())


def test_fp16_has_a_scaler_for_each(tmp_path: Path) -> None:
    made = trained(precision="fp16", loop=IterBasedTrainLoop(4))
    state = made.step.state_dict()["steps"]
    for name in ("a", "b"):
        scaler = state[name]["precision"]
        assert scaler["_growth_tracker"] >= 3  # the first scale may be too large
        assert scaler["scale"] >= 2**14
    assert all(bool(parameter.isfinite().all()) for parameter in made.model.parameters())


SCHEDULES = {
    "a": Schedule(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), by="epoch"),
    "b": Schedule(partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max="auto"), by="epoch"),
}


def scheduled(**more: Any) -> Runner:
    return trained(hooks={"param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"}}, **more)


def test_each_has_a_schedule() -> None:
    made = scheduled(schedule=dict(SCHEDULES))
    rates = [[group["lr"] for group in made.schedule.row(epoch)] for epoch in range(3)]
    assert rates == [pytest.approx(row) for row in ([0.1, 0.02], [0.05, 0.015], [0.025, 0.005])]
    assert [group["lr"] for group in made.optimizer.param_groups] == pytest.approx([0.025, 0.005])
    one = scheduled(schedule={"b": SCHEDULES["b"]})
    assert [group["lr"] for group in one.optimizer.param_groups] == pytest.approx([0.1, 0.005])
    both = scheduled(schedule=SCHEDULES["a"])
    assert [group["lr"] for group in both.optimizer.param_groups] == pytest.approx([0.025, 0.005])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_goes_on_where_it_was(tmp_path: Path, accumulate: int) -> None:
    def run(name: str, iters: int, **more: Any) -> Runner:
        hooks = {
            "param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"},
            "checkpoint": {"_target_": "trainyard.hooks.Checkpoint"},
            "stop": InterruptAt(iters),
        }
        loop = IterBasedTrainLoop(13, val_interval=100)
        schedule = {
            "a": Schedule(partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max="auto"), by="iter"),
            "b": Schedule(warmup=0.5, by="iter"),
        }
        return trained(
            hooks=hooks, loop=loop, schedule=schedule, work_dir=tmp_path / name, accumulate=accumulate, **more
        )

    whole = run("whole", 99)
    assert run("parts", 5).iter == 5
    resumed = run("parts", 99, resume=True)
    assert resumed.iter == 13
    assert_same_bits(resumed.model, whole.model)


def test_rules_for_single_parameters_hold_in_each() -> None:
    node = {"_target_": SGD, "_partial_": True, "lr": 1.0}
    optim = {"a": node | {"paramwise": {"bias_lr_mult": 2}}, "b": node}
    check_of = {name: entry | {"_target_": "torch.optim.SGD"} for name, entry in optim.items()}
    check(OmegaConf.create({"optim": check_of}))
    groups = runner(optim=optim).make_optimizer().param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1.0, 1), (2.0, 1), (1.0, 2)]


class Uneven(Duel):
    """`b` has three turns on a batch, `a` none at first."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def train_steps(self, batch: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
        self.batches += 1
        for _ in range(3):
            yield "b", {"loss": -self(*batch).tanh().mean()}
        if self.batches > 2:
            yield "a", {"loss": self(*batch).tanh().mean()}


def test_turns_need_not_be_even() -> None:
    made = trained(Uneven())
    states = made.optimizer.state_dict()["optimizers"]
    assert states["b"]["state"][0]["step"] == 45
    with pytest.raises(TrainyardError, match="accumulate=2 is invalid, because b has two turns"):
        trained(Uneven(), accumulate=2)


class Alternating(Duel):
    """`b` has a turn on each batch, `a` on some."""

    done: Tensor

    def __init__(self, batches: set[int]) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self.batches = batches

    def train_steps(self, batch: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
        yield "b", {"loss": -self(*batch).tanh().mean()}
        if int(self.done) in self.batches:
            yield "a", {"loss": self(*batch).tanh().mean()}
        self.done += 1


@pytest.mark.parametrize("batches", [{0}, {1}, {2, 3, 5}])
def test_with_accumulate_a_turn_is_on_all_batches_of_a_group(batches: set[int]) -> None:
    with pytest.raises(TrainyardError, match=r"accumulate=2 is invalid, because a has a turn on only some of the bat"):
        trained(Alternating(batches), accumulate=2)


def test_with_accumulate_a_group_may_be_without_a_turn(tmp_path: Path) -> None:
    """An epoch has groups of 2, 2 and 1 batches; `a` has turns in the second epoch."""

    def run(name: str, until: int, **more: Any) -> Runner:
        hooks = {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint"}, "stop": InterruptAt(until)}
        model = Alternating(set(range(5, 10)))
        return trained(model, hooks=hooks, work_dir=tmp_path / name, accumulate=2, **more)

    whole = run("whole", 99)
    assert whole.iter == 15
    for until in (1, 6, 8):
        assert run(str(until), until).iter == until
        assert_same_bits(run(str(until), 99, resume=True).model, whole.model)


class Wrong(Duel):
    def __init__(self, turns: list[Any]) -> None:
        super().__init__()
        self.turns = turns

    def train_steps(self, batch: Any) -> Iterator[Any]:
        yield from self.turns


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([], "it yielded nothing"),
        ([{"loss": 1}], r"must yield pairs of an optimizer's name \(a, b\)"),
        ([("c", {})], "it yielded"),
        ([("a", {"error": torch.ones(())})], "returned no loss"),
    ],
)
def test_turns_that_cannot_be(turns: list[Any], told: str) -> None:
    with pytest.raises(TrainyardError, match=told):
        trained(Wrong(turns))


class Plain(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor, mode: str = "tensor") -> Any:
        return {"loss": self.layer(x).mean()}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optim": {"a": OPTIM["a"]}}, "optim.b: None is invalid. Expected a config with `_partial_: true`"),
        (
            {"optim": OPTIM | {"c": OPTIM["a"]}},
            "optim: 'c' is invalid. Expected one of the names in Duel.optimizer_groups",
        ),
        ({"optim": OPTIM["a"]}, "Expected a config for each of a, b"),
        ({"optim": OPTIM | {"b": partial(Adam, lr=-1)}}, "optim.b.lr: -1 is invalid. Expected a number of at least 0"),
        ({"model": Plain()}, "Expected one config with `_target_`, because the model has no train_steps"),
        ({"schedule": {"c": SCHEDULES["a"]}}, "schedule: 'c' is invalid. Expected the name of an optimizer: a, b"),
        ({"schedule": {"a": Plateau()}}, "schedule.a: 'Plateau' is invalid. Expected a trainyard.schedules.Schedule"),
        (
            {"schedule": {"a": SCHEDULES["a"], "b": Schedule(warmup=2, by="iter")}},
            "schedule.b.by: 'iter' is invalid. Expected epoch, as for a, because the schedules of all optimizers",
        ),
        (
            {"schedule": {"a": Schedule(warmup=2), "b": Schedule(warmup=2, by="iter")}},
            "schedule.a.by: None is invalid. Expected iter, as for b",
        ),
        (
            {"schedule": {"a": Schedule(warmup=9, by="epoch")}},
            "schedule.a.warmup: 9 is invalid. Expected less than 3",
        ),
        ({"model": Plain(), "optim": OPTIM["a"], "schedule": dict(SCHEDULES)}, "Expected one schedule"),
    ],
)
def test_what_cannot_work(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        trained(**settings)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("groups", "told"), [({"a": "a"}, "b.weight belongs to no entry"), ({"a": "*", "b": "b"}, "belongs to a, b")]
)
def test_every_parameter_has_one_optimizer(groups: dict[str, Any], told: str) -> None:
    model = Duel()
    model.optimizer_groups = groups
    with pytest.raises(TrainyardError, match=told):
        build_several(dict.fromkeys(groups, OPTIM["a"]), model)


def test_all_at_once() -> None:
    model = Duel()
    optimizer = build_several(OPTIM, model)
    assert isinstance(optimizer, OptimizerDict)
    (model.b(model.a(torch.ones(1, 3)))).sum().backward()
    before = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
    assert optimizer.step(lambda: 3.0) == 3.0
    after = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert len(optimizer.state) == 4
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="its optimizers are x, but this run has a, b"):
        optimizer.load_state_dict({"optimizers": {"x": {}}})
    assert ScheduleDict({}).constant


def test_a_group_cannot() -> None:
    config = {
        "model": {"_target_": Duel},
        "data": {"_target_": numbers},
        "optim": {"a": {"_target_": SGD, "_partial_": True}, "b": {"_target_": SGD, "_partial_": True}},
        "loop": {"_target_": EpochBasedTrainLoop, "max_epochs": 1},
        "device": "cpu",
        "hook": {},
    }
    with pytest.raises(Unfusable, match="the model has several optimizers"):
        FusedRunner([config, config]).train()


def test_the_energy_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.randn(400, 2, generator=generator) + 4 * y[:, None]
    alike = torch.randn(400, 2, generator=generator) + 4 * y[:, None]
    values = {}
    for name, made in {"alike": alike, "swapped": alike.flip(0), "one point": torch.zeros(400, 2)}.items():
        metric = EnergyDistance()
        for part in range(0, 400, 100):
            metric.process((x[part : part + 100], y[part : part + 100]), made[part : part + 100])
        values[name] = metric.compute().item()
    assert abs(values["alike"]) < 0.1
    assert values["swapped"] > 4
    assert values["one point"] > 1


def test_a_gan_learns_the_rings(tmp_path: Path) -> None:
    """`experiment=rings_gan`, shortened."""
    command = [sys.executable, str(ROOT / "train.py"), "experiment=rings_gan", "tracker=none", "loop.max_epochs=25"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = forked.run([*command, f"hydra.run.dir={tmp_path}/run"], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    points = [line["values"] for line in lines if line["kind"] == "metrics"]
    distances = [values["val/distance"] for values in points if "val/distance" in values]
    assert len(distances) == 5
    assert min(distances) < 0.05
    assert any("train/generator/loss" in values for values in points)
