"""Parameters that are trained later than from the start: in the optimizer, scheduled, clipped, resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import InterruptAt
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from trainyard.errors import ConfigError, TrainyardError
from trainyard.hooks import EMA, Checkpoint, Hook, Norms, ParamSchedule, Unfreeze
from trainyard.models import Supervised
from trainyard.models.gan import GAN
from trainyard.optim import build_several
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from trainyard.schedules import Plateau, Schedule
from trainyard.track import read

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "fused": True}
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01, "fused": True}
ADAGRAD = {"_target_": "torch.optim.Adagrad", "_partial_": True, "lr": 0.01, "fused": True}
METRICS = {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}}
BATCH, BATCHES = 8, 5


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 4, generator=generator), torch.randint(0, 3, (40,), generator=generator)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def runner(model: nn.Module, work_dir: Path | None = None, epochs: int = 4, **more: Any) -> Runner:
    settings = {
        "data": {
            "train": DataLoader(TensorDataset(*rows()), BATCH),
            "val": DataLoader(TensorDataset(*rows()), 40),
        },
        "optim": SGD,
        "metrics": METRICS,
        "hooks": {},
        "loop": EpochBasedTrainLoop(epochs),
        "device": "cpu",
        "work_dir": work_dir,
        "resume": work_dir is not None,
    }
    return Runner(Supervised(model), **(settings | more))


class At(Hook):
    """Does something with the runner before an epoch, counted from 0."""

    def __init__(self, epoch: int, do: Callable[[Runner], Any]) -> None:
        self.epoch = epoch
        self.do = do

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == self.epoch:
            self.do(runner)


def by_hand(epochs: int, at: int, lr: float, clip: float | None = None) -> nn.Module:
    """A loop of plain torch that trains the last layer, and all of them from epoch `at` on."""
    model, (x, y) = net(), rows()
    model.train()
    model[:5].requires_grad_(False)
    optimizer = torch.optim.SGD(model[5].parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        if epoch == at:
            model.requires_grad_(True)
            later = list(model[:5].parameters())
            optimizer.add_param_group({"params": later, "lr": lr})
        for first in range(0, len(x), BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[first : first + BATCH]), y[first : first + BATCH]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
            optimizer.step()
    return model


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for (name, tensor), (_, other) in zip(found.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_group_that_a_hook_adds_is_trained_as_by_hand(clip: float | None) -> None:
    model = net()
    model[:5].requires_grad_(False)

    def add(runner: Runner) -> None:
        model.requires_grad_(True)
        later = list(model[:5].parameters())
        runner.optimizer.add_param_group({"params": later, "lr": 0.03})

    optim = torch.optim.SGD(model[5].parameters(), lr=0.1, momentum=0.9)
    runner(model, hooks={"add": At(2, add)}, optim=optim, clip_grad_norm=clip, epochs=4).train()
    assert_same(model, by_hand(4, 2, 0.03, clip))


def test_what_a_hook_gives_gradients_joins_the_optimizer_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    model[:5].requires_grad_(False)
    hook = At(2, lambda runner: runner.model.requires_grad_(True))
    with caplog.at_level(logging.INFO):
        runner(model, hooks={"hook": hook}, optim=SGD | {"fused": False}, epochs=4).train()
    told = "These parameters are trained from epoch 3 on: net.0.weight, net.0.bias, net.1.weight and 3 more."
    assert told in caplog.text
    assert_same(model, by_hand(4, 2, 0.1))


def test_what_an_optimizer_of_the_user_leaves_out_stays_out() -> None:
    model = net()
    optim = torch.optim.SGD(model[5].parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    hook = At(1, lambda runner: runner.unfreeze(["net.3"]))
    model[3].requires_grad_(False)
    (made := runner(model, hooks={"hook": hook}, optim=optim, epochs=2)).train()
    assert torch.equal(model[0].weight, before)
    assert [len(group["params"]) for group in made.optimizer.param_groups] == [2, 2]


def test_parameters_that_no_optimizer_came_to_train_are_told(caplog: pytest.LogCaptureFixture) -> None:
    class Late(Hook):
        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            runner.model.requires_grad_(True)

    runner(net(), hooks={"late": Late()}, freeze=["net.0"], loop=IterBasedTrainLoop(3)).train()
    assert "are not trained by any optimizer: net.0.weight, net.0.bias." in caplog.text


def test_a_norm_leaves_evaluation_mode_with_its_parameters() -> None:
    seen = []
    note = At(2, lambda runner: seen.append(runner.model.net[1].training))
    note.priority = "LOW"
    hooks = {"note": note, "unfreeze": Unfreeze({3: "net.1"})}
    (made := runner(net(), hooks=hooks, freeze=["net.0", "net.1"], epochs=3)).train()
    assert seen == [True]
    model: Any = made.model
    assert not model.net[0].training
    assert model.net[1].num_batches_tracked == BATCHES


SCHEDULES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "constant": Schedule,
    "epoch": lambda: Schedule(partial(ExponentialLR, gamma=0.5), by="epoch"),
    "iter": lambda: Schedule(partial(CosineAnnealingLR, T_max="auto"), by="iter"),
    "plateau": lambda: Plateau(patience=0, threshold=10.0, factor=0.5),
}
PARAMWISE = {"paramwise": {"custom_keys": {"net.3.": {"lr_mult": 0.5}}, "bias_lr_mult": 2.0}}


def gradually(work_dir: Path | None, epochs: int, schedule: str, loop: Any = None, **more: Any) -> Runner:
    hooks: dict[str, Any] = {
        "unfreeze": Unfreeze({2: "net.3", 4: ["net.0", "net.1"]}, by="epoch"),
        "param_schedule": ParamSchedule(),
        "norms": Norms(1, by_module=True),
        "ema": EMA(0.9),
        "checkpoint": Checkpoint(interval=1, by="iter", max_keep=None),
    }
    settings = {"freeze": ["net.0", "net.1", "net.3"], "hooks": hooks, "schedule": SCHEDULES[schedule]()} | more
    made = runner(net(), work_dir, epochs, **settings)
    made.train()
    return made


@pytest.mark.parametrize("at", [BATCHES + 2, 3 * BATCHES])
@pytest.mark.parametrize(
    ("schedule", "more"),
    [
        ("none", {"optim": SGD | PARAMWISE, "accumulate": 2}),
        ("constant", {"optim": SGD}),
        ("epoch", {"optim": ADAM, "clip_grad_norm": 0.5}),
        ("iter", {"optim": SGD}),
        ("plateau", {"optim": ADAGRAD}),
    ],
)
def test_gradual_unfreezing_resumes_with_the_same_bits(
    tmp_path: Path, at: int, schedule: str, more: dict[str, Any]
) -> None:
    whole = gradually(tmp_path / "whole", 5, schedule, **more)
    path = tmp_path / f"whole/checkpoints/iter_{at:08d}.pt"
    resumed = gradually(tmp_path / "again", 5, schedule, resume=path, **more)
    assert_same(resumed.model, whole.model)
    assert_same(resumed.eval_model, whole.eval_model)
    groups = [
        [{k: v for k, v in g.items() if k != "params"} for g in r.optimizer.param_groups] for r in (whole, resumed)
    ]
    assert groups[0] == groups[1]
    points = [_points(tmp_path / name, at) for name in ("whole", "again")]
    assert points[0] == points[1]


def _points(directory: Path, after: int) -> dict[Any, float]:
    return {
        (name, record["step"]): value
        for record, _ in read(directory / "metrics.jsonl")
        for name, value in record.get("values", {}).items()
        if record["step"] > after
    }


def test_a_group_that_joins_is_scheduled_as_if_it_had_been_there() -> None:
    made = gradually(None, 5, "epoch", optim=SGD | PARAMWISE)
    by_name = {group["name"]: group["lr"] for group in made.optimizer.param_groups}
    assert by_name == {"default": 0.1 / 16, "bias": 0.2 / 16, "net.3.": 0.05 / 16}


def test_the_frozen_of_the_start_are_those_that_a_resume_compares(tmp_path: Path) -> None:
    gradually(tmp_path, 2, "none")
    with pytest.raises(
        ConfigError, match=r"frozen in the checkpoint but not in this run: net\.3\.weight, net\.3\.bias"
    ):
        gradually(tmp_path, 3, "none", freeze=["net.0", "net.1"])


def test_by_iterations(tmp_path: Path) -> None:
    hooks = {"unfreeze": Unfreeze({4: "net.3"}), "stop": InterruptAt(7), "checkpoint": Checkpoint()}
    settings: dict[str, Any] = {"freeze": ["net.0", "net.1", "net.3"], "loop": IterBasedTrainLoop(12)}
    (whole := runner(net(), hooks={"unfreeze": Unfreeze({4: "net.3"})}, **settings)).train()
    runner(net(), tmp_path, hooks=hooks, **settings).train()
    (resumed := runner(net(), tmp_path, hooks={"unfreeze": Unfreeze({4: "net.3"})}, **settings)).train()
    assert resumed.iter == 12
    assert_same(resumed.model, whole.model)


def test_a_pattern_that_fits_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hook\.unfreeze\.at\.3: 'net\.9' is invalid.*Did you mean 'net"):
        runner(net(), tmp_path / "run", hooks={"unfreeze": Unfreeze({3: "net.9"})}).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("at", [{}, {0: "net.1"}, ["net.1"], {"later": "net.1"}])
def test_wrong_arguments(at: Any) -> None:
    with pytest.raises(ConfigError, match=r"at: .* Expected a mapping from epochs"):
        Unfreeze(at)


@pytest.mark.parametrize("patterns", [5, None, [], [5], {"a": "b"}])
def test_wrong_patterns(patterns: Any) -> None:
    with pytest.raises(ConfigError, match=r"at\.3: .* Expected a pattern, or a list of at least one pattern"):
        Unfreeze({1: "net", 3: patterns})


def test_a_group_for_several_optimizers_names_one() -> None:
    torch.manual_seed(0)
    model = GAN(in_features=2, num_classes=2, hidden=[4])
    optimizer = build_several(dict.fromkeys(model.optimizer_groups, partial(torch.optim.Adam, lr=0.1)), model)
    with pytest.raises(TrainyardError, match="on one of"):
        optimizer.add_param_group({"params": [torch.zeros(1)]})


def test_several_optimizers_get_each_its_own() -> None:
    rings = {"_target_": "trainyard.data.Rings", "num_samples": 64, "batch_size": 16}
    optim = dict.fromkeys(GAN.optimizer_groups, ADAM)
    layer = "generator.0"
    made = Runner(
        {"_target_": "trainyard.models.gan.GAN", "in_features": 2, "num_classes": 2, "hidden": [4, 4]},
        rings,
        optim,
        hooks={"unfreeze": Unfreeze({2: layer})},
        freeze=[layer],
        loop=EpochBasedTrainLoop(2),
        device="cpu",
    )
    own = {id(parameter) for parameter in made.model.get_submodule(layer).parameters()}
    made.data.splits = ("train",)
    made.train()
    optimizer: Any = made.optimizer
    assert {id(p) for p in optimizer.optimizers["generator"].param_groups[1]["params"]} == own
    assert len(optimizer.optimizers["discriminator"].param_groups) == 1
