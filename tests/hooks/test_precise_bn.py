from pathlib import Path
from typing import Any

import pytest
import torch
from streams import StatefulLoader, StatefulStream, Stream, sample
from torch import nn
from torch.utils.data import DataLoader, IterDataPipe, TensorDataset

from trainyard.data import Digits
from trainyard.errors import ConfigError
from trainyard.hooks import EMA, Checkpoint, Hook, PreciseBN
from trainyard.models import CNN, Supervised
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint

MLP = {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [8, 8], "batch_norm": True}


def population(model: Any, layer: Any, loader: Any, batches: Any) -> Any:
    """Mean and variance over all that enters `layer` in training mode, taken in one go."""
    model.train()
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().transpose(0, 1).flatten(1)))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for batch, _ in zip(loader.batches(0), range(batches), strict=False):
            model.train_step(batch)
    hook.remove()
    model.load_state_dict(buffers, strict=False)
    values = torch.cat(seen, 1).double()
    return values.mean(1).float(), values.var(1, correction=0).float()


class Look(Hook):
    """What the layer's statistics are, and what they should be, at each validation."""

    priority = "HIGH"

    def __init__(self, name: Any, batches: Any) -> None:
        self.name, self.batches = name, batches
        self.found: list[Any] = []

    def after_val_epoch(self, runner: Any, metrics: Any) -> None:
        layer = runner.eval_model.get_submodule(self.name)
        mine = layer.running_mean.clone(), layer.running_var.clone()
        batches = min(self.batches, len(runner.loader("train")))
        loader = runner.loader("train")
        epoch = runner.epoch

        class Epoch:
            def batches(self, _: Any) -> Any:
                return loader.batches(epoch)

        self.found.append((mine, population(runner.eval_model, layer, Epoch(), batches)))
        runner.eval_model.eval()


@pytest.mark.parametrize("name", ["net.2", "net.5"])
@pytest.mark.parametrize("batches", [1, 4, 100])
@pytest.mark.parametrize("average", [False, True])
def test_the_statistics_are_the_populations(make: Any, name: str, batches: int, average: bool) -> None:
    look = Look(name, batches)
    hooks = {"precise": PreciseBN(batches), "look": look} | ({"ema": EMA(0.9)} if average else {})
    make(hooks, model=MLP).train()
    assert len(look.found) == 3
    for mine, theirs in look.found:
        for ours, expected in zip(mine, theirs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_images_of_batches_of_unequal_size(make: Any) -> None:
    model = CNN(in_channels=1, num_classes=10, channels=[4, 8])
    x = torch.rand(41, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    points = TensorDataset(x, torch.arange(41) % 10)
    data = {"train": DataLoader(points, batch_size=16), "val": DataLoader(points, batch_size=16)}
    look = Look("net.5", 3)
    runner = make({"precise": PreciseBN(3), "look": look}, epochs=2, model=model, data=data)
    assert isinstance(runner.model.get_submodule("net.5"), nn.BatchNorm2d)
    runner.train()
    for mine, theirs in look.found:
        for ours, expected in zip(mine, theirs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_training_goes_on_as_if_it_were_not_there(make: Any) -> None:
    def trained(hooks: Any) -> Any:
        runner = make(hooks, model=MLP | {"dropout": 0.3}, loop=IterBasedTrainLoop(16, val_interval=4))
        runner.train()
        return runner

    precise, plain = trained({"precise": PreciseBN()}), trained({})
    for ours, theirs in zip(precise.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = dict(precise.model.named_buffers()), dict(plain.model.named_buffers())
    assert torch.equal(ours["net.2.num_batches_tracked"], theirs["net.2.num_batches_tracked"])
    assert not torch.equal(ours["net.2.running_var"], theirs["net.2.running_var"])


def test_the_checkpoint_has_them_and_a_validation_alone_leaves_them(make: Any, tmp_path: Path) -> None:
    make({"precise": PreciseBN(), "checkpoint": Checkpoint()}, epochs=1, model=MLP, work_dir=tmp_path).train()
    file, state = checkpoint.newest(tmp_path / "checkpoints")  # type: ignore[misc]
    runner = make({"precise": PreciseBN()}, model=MLP, load_from=file)
    (results,) = runner.val()
    assert results["val/loss"] == state["member"]["metrics"]["val/loss"]
    assert torch.equal(runner.model.get_buffer("net.2.running_var"), state["model"]["net.2.running_var"])


class Half(nn.Module):
    """A frozen normalisation, one without statistics, one whose layer is passed over, and one that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm1d(2)
        self.bare = nn.BatchNorm1d(2, track_running_stats=False)
        self.unused = nn.BatchNorm1d(2)
        self.trained = nn.BatchNorm1d(2, momentum=None)
        self.head = nn.Linear(2, 2)
        for layer in (self.frozen, self.unused):
            layer.running_mean.fill_(7.0)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Any) -> Any:
        return self.head(self.trained(self.bare(self.frozen(x))))


def test_what_training_does_not_touch_stays(make: Any) -> None:
    look = Look("net.trained", 100)
    runner = make({"precise": PreciseBN(), "look": look}, model=Supervised(Half(), nn.functional.cross_entropy))
    runner.train()
    for layer in ("frozen", "unused"):
        assert runner.model.get_buffer(f"net.{layer}.running_mean").tolist() == [7.0, 7.0]
        assert runner.model.get_buffer(f"net.{layer}.running_var").tolist() == [1.0, 1.0]
    for mine, theirs in look.found:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_it_helps_where_the_running_averages_lag(make: Any) -> None:
    """With a momentum so small that they stay where they began."""

    def loss(hooks: Any) -> Any:
        model = CNN(in_channels=1, num_classes=10, channels=[8])
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1e-4
        return make(hooks, epochs=1, model=model, data=Digits(batch_size=50)).train()[0]["val/loss"]

    assert loss({"precise": PreciseBN()}) < loss({})


def test_a_model_without_normalisation_is_let_be(make: Any) -> None:
    precise, plain = make({"precise": PreciseBN()}), make({})
    assert precise.train() == plain.train()


@pytest.mark.parametrize("given", [0, 1.5])
def test_a_number_of_batches_that_cannot_be(given: float) -> None:
    with pytest.raises(ConfigError, match=r"batches: .* is invalid. Expected an integer of at least 1"):
        PreciseBN(given)


class Pipe(IterDataPipe[Any]):
    """A data pipe, of which only one iterator is valid at a time."""

    def __iter__(self) -> Any:
        return iter([sample(number) for number in range(20)])


class Alone(DataLoader[Any]):
    """A loader with an iteration of its own, which Trainyard uses as it is."""

    def __iter__(self) -> Any:
        return super().__iter__()


SAMPLES: Any = [sample(number) for number in range(20)]
ITER, EPOCH = IterBasedTrainLoop(7, val_interval=2), EpochBasedTrainLoop(2)


def of(train: Any, hooks: Any, loop: Any, **more: Any) -> Runner:
    """A run of which the training data is this loader, of five batches."""
    return Runner(
        model=MLP | {"in_features": 4, "num_classes": 3},
        data={"train": train, "val": DataLoader(SAMPLES, 4)},
        optim={"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        loop=loop,
        metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        hooks=hooks,
        device="cpu",
        **more,
    )


def test_workers_that_persist_go_on_within_their_epoch() -> None:
    """Those of the training are not asked for the batches of the hook."""
    found = []
    for workers, hooks in ((1, {"precise": PreciseBN(3)}), (0, {"precise": PreciseBN(3)}), (0, {})):
        train: Any = DataLoader(SAMPLES, 4, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        runner = of(train, hooks, IterBasedTrainLoop(7, val_interval=2))
        runner.train()
        found.append((dict(runner.model.state_dict()), dict(runner.members[0].metrics)))
    (worked, metrics), (alone, other_metrics), (plain, _) = found
    assert metrics == other_metrics
    for name, value in worked.items():
        assert torch.equal(value, alone[name]), name
        assert torch.equal(value, plain[name]) == ("running" not in name), name


@pytest.mark.parametrize(
    ("train", "loop", "works"),
    [
        (DataLoader(Stream(20), 4), ITER, True),
        (DataLoader(Stream(20), 4), EPOCH, True),
        (DataLoader(StatefulStream(20), 4), ITER, False),
        (DataLoader(StatefulStream(20), 4), EPOCH, False),
        (StatefulLoader(SAMPLES, 4), EPOCH, False),
        (DataLoader(Pipe(), 4), ITER, False),
        (DataLoader(Pipe(), 4), EPOCH, True),
        (Alone(SAMPLES, 4), ITER, True),
        (Alone(SAMPLES, 4, num_workers=1, persistent_workers=True), ITER, False),
        (Alone(SAMPLES, 4, num_workers=1, persistent_workers=True), EPOCH, True),
    ],
)
def test_data_that_cannot_be_read_twice_is_told_before_the_training(
    tmp_path: Path, train: Any, loop: Any, works: bool
) -> None:
    runner = of(train, {"precise": PreciseBN(3)}, loop, work_dir=tmp_path / "run")
    if works:
        runner.train()
        return
    with pytest.raises(
        ConfigError, match=r"^hook\.precise: 'PreciseBN' is invalid\. Expected training data that can be"
    ):
        runner.train()
    assert not (tmp_path / "run").exists()
