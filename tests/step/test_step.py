"""The step against PyTorch written by hand, on real trainings."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from trainyard.data import ArrayData, Rings
from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook
from trainyard.metrics import Accuracy
from trainyard.models import MLP, BaseModel
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint

CPU = torch.device("cpu")
EPOCHS = 2


def rings(**more: Any) -> Any:
    return Rings(num_samples=100, batch_size=16, **more)


def mlp(**more: Any) -> Any:
    torch.manual_seed(3)
    return MLP(in_features=2, num_classes=2, hidden=[12], **more)


def trained(model: Any, optim: Any, *, data: Any = None, loop: Any = None, **more: Any) -> Any:
    settings: dict[str, Any] = {"hooks": {}, "loop": loop or EpochBasedTrainLoop(EPOCHS), "device": "cpu"}
    runner = Runner(model, data or rings(val_fraction=0), optim, **(settings | more))
    runner.train()
    return runner


def batches(seed: int = 0) -> Any:
    """The batches of a run, as its steps see them."""
    loader = rings(val_fraction=0).loader("train", seed=seed, device=CPU)
    return [batch for epoch in range(EPOCHS) for batch in loader.batches(epoch)]


def assert_same_bits(model: Any, other: Any) -> None:
    for (name, tensor), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name


OPTIMISERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "sgd fused": partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "adam": partial(torch.optim.Adam, lr=0.01, foreach=True),
    "adam fused": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, amsgrad=True, foreach=False),
}


@pytest.mark.parametrize("optim", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_is_the_one_written_by_hand(optim: Any, clip: float | None) -> None:
    runner = trained(mlp(), optim, clip_grad_norm=clip)

    net = mlp()
    optimizer = optim(net.parameters())
    for x, y in batches():
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    assert_same_bits(runner.model, net)


def test_bf16_is_autocast_by_hand() -> None:
    optim = OPTIMISERS["adam"]
    runner = trained(mlp(), optim, precision="bf16")
    net = mlp()
    optimizer = optim(net.parameters())
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    assert_same_bits(runner.model, net)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_fp16_is_autocast_and_a_scaler_by_hand(clip: float | None) -> None:
    optim = OPTIMISERS["sgd"]
    runner = trained(mlp(), optim, precision="fp16", clip_grad_norm=clip)
    net = mlp()
    optimizer, scaler = optim(net.parameters()), torch.amp.GradScaler("cpu")
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
    assert_same_bits(runner.model, net)
    assert runner.step.precision.scaler.state_dict() == scaler.state_dict()


def test_the_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(name: Any, epochs: Any, **more: Any) -> Any:
        hooks = {"checkpoint": Checkpoint()}
        loop = EpochBasedTrainLoop(epochs)
        work_dir = tmp_path / name
        return trained(mlp(), OPTIMISERS["adam"], loop=loop, hooks=hooks, work_dir=work_dir, precision="fp16", **more)

    whole = run("whole", 3)
    run("parts", 1)
    resumed = run("parts", 3, resume=True)
    assert_same_bits(resumed.model, whole.model)
    saved = checkpoint.newest(tmp_path / "parts" / "checkpoints")[1]["step"]["precision"]
    assert saved["_growth_tracker"] == whole.iter


def test_another_precision_may_resume(tmp_path: Path) -> None:
    hooks = {"checkpoint": Checkpoint()}
    for epochs, precision in enumerate(["fp32", "fp16", "bf16"], 1):
        runner = trained(
            mlp(),
            OPTIMISERS["adam"],
            loop=EpochBasedTrainLoop(epochs),
            hooks=hooks,
            work_dir=tmp_path,
            precision=precision,
            resume=True,
        )
        assert runner.epoch == epochs


def test_evaluation_runs_in_the_precision_of_the_training() -> None:
    seen = []

    class Dtype(Hook):
        def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            seen.append(outputs.dtype)

    metrics = {"accuracy": Accuracy()}
    runner = Runner(mlp(), rings(), precision="bf16", metrics=metrics, hooks={"dtype": Dtype()}, device="cpu")
    runner.val()
    assert set(seen) == {torch.bfloat16}


class Regression(BaseModel):
    """Least squares with a second loss, a number that is no loss, and in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1, dtype=torch.float64)
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Any, y: Any, mode: str = "tensor") -> Any:
        error = self.layer(x).squeeze(-1) - y
        squared, absolute = error.square().mean(), error.abs().mean()
        return {"loss_squared": squared, "absolute_loss": 0.5 * absolute, "largest": error.abs().max()}


def regression(batch_size: Any, count: Any) -> Any:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(count, generator=generator, dtype=torch.float64)
    return ArrayData({"train": (x, y)}, {}, batch_size=batch_size)


@settings(max_examples=40)
@given(
    accumulate=st.integers(1, 6),
    per_epoch=st.integers(1, 7),
    unit=st.sampled_from(["epoch", "iter"]),
    length=st.integers(1, 3),
    clip=st.sampled_from([None, 0.5]),
)
def test_accumulated_steps_are_those_of_the_big_batch(
    accumulate: int, per_epoch: int, unit: str, length: int, clip: float | None
) -> None:
    """In an epoch loop a group ends with the epoch; in an iteration loop, which is endless, only with the run."""
    size, optim = 4, partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    iterations = length * per_epoch + (2 if unit == "iter" else 0)
    loop = EpochBasedTrainLoop(length) if unit == "epoch" else IterBasedTrainLoop(iterations)
    data = regression(size, size * per_epoch)
    runner = trained(Regression(), optim, data=data, loop=loop, accumulate=accumulate, clip_grad_norm=clip)

    loader = data.loader("train", seed=0, device=CPU)
    stream = [batch for epoch in range(length + 2) for batch in loader.batches(epoch)][:iterations]
    period = per_epoch if unit == "epoch" else iterations
    groups = [
        stream[first + at : first + min(at + accumulate, period)]
        for first in range(0, iterations, period)
        for at in range(0, period, accumulate)
    ]
    by_hand = Regression()
    optimizer = optim([by_hand.layer.weight, by_hand.layer.bias])
    for group in groups:
        x, y = (torch.cat(parts) for parts in zip(*group, strict=True))
        losses = by_hand(x, y, mode="loss")
        optimizer.zero_grad()
        (losses["loss_squared"] + losses["absolute_loss"]).backward()
        if clip:
            nn.utils.clip_grad_norm_([by_hand.layer.weight, by_hand.layer.bias], clip)
        optimizer.step()
    for parameter, expected in zip(runner.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-13)


class Outputs(Hook):
    def __init__(self) -> None:
        self.all: list[Any] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        assert all(parameter.grad is None for parameter in runner.model.parameters())
        self.all.append(outputs)


def test_every_loss_is_summed_and_all_numbers_are_given_detached() -> None:
    hook = Outputs()
    trained(Regression(), OPTIMISERS["sgd"], data=regression(5, 20), hooks={"outputs": hook})
    assert len(hook.all) == 4 * EPOCHS
    for outputs in hook.all:
        assert sorted(outputs) == ["absolute_loss", "largest", "loss", "loss_squared"]
        assert outputs["loss"] == outputs["loss_squared"] + outputs["absolute_loss"]
        assert not any(value.requires_grad for value in outputs.values())


def test_the_loss_that_is_given_is_that_before_the_step() -> None:
    hook = Outputs()
    trained(mlp(), OPTIMISERS["sgd"], hooks={"outputs": hook})
    x, y = batches()[0]
    assert hook.all[0]["loss"] == cross_entropy(mlp()(x), y)


def test_the_norm_of_the_gradients_is_given_where_they_are_clipped() -> None:
    class Norms(Outputs):
        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            self.all.append(outputs)

    hook = Norms()
    trained(mlp(), OPTIMISERS["sgd"], hooks={"outputs": hook}, clip_grad_norm=1e9, accumulate=2)
    assert ["grad_norm" in outputs for outputs in hook.all] == [False, True, False, True, True] * EPOCHS

    net, (first, second) = mlp(), batches()[:2]
    ((cross_entropy(net(first[0]), first[1]) + cross_entropy(net(second[0]), second[1])) / 2).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in net.parameters()]).norm()
    torch.testing.assert_close(hook.all[1]["grad_norm"], norm)


def test_frozen_parameters_are_not_the_optimizers() -> None:
    runner = trained(Regression(), OPTIMISERS["sgd"], data=regression(5, 20))
    assert torch.equal(runner.model.frozen, torch.ones(2, dtype=torch.float64))
    (group,) = runner.optimizer.param_groups
    assert len(group["params"]) == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"accumulate": 0}, "accumulate: 0 is invalid. Expected an integer of at least 1"),
        ({"accumulate": 1.5}, "accumulate: 1.5 is invalid"),
        ({"clip_grad_norm": 0}, "clip_grad_norm: 0 is invalid. Expected a number above 0"),
        ({"clip_grad_norm": float("nan")}, "clip_grad_norm: nan is invalid"),
        (
            {"precision": "bf61"},
            "precision: 'bf61' is invalid. Expected one of fp32, tf32, bf16, fp16. Did you mean 'bf16'?",
        ),
    ],
)
def test_settings_that_cannot_work(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        trained(mlp(), OPTIMISERS["sgd"], **settings)
    assert told in str(error.value)


def test_tf32_is_for_the_run_that_asks_for_it() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for precision, products in [("tf32", "high"), ("fp32", "highest")]:
            trained(mlp(), OPTIMISERS["sgd"], precision=precision)
            assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_model_without_a_loss_is_told() -> None:
    class NoLoss(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Any, y: Any, mode: str = "tensor") -> Any:
            return {"error": self.layer(x).mean()}

    with pytest.raises(Exception, match="must contain 'loss'"):
        trained(NoLoss(), OPTIMISERS["sgd"])
