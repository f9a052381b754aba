"""A group of batches makes the step of one large batch: by samples, or by the items that the model counts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_training import same
from interrupting import InterruptAt
from recorded_graph import RecordedGraph
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Checkpoint, Hook, Logger
from trainyard.metrics import CrossEntropy
from trainyard.models import BaseModel
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from trainyard.step.cuda_graph.captured_step import CapturedStep
from trainyard.track import read

IGNORED = -100
SAMPLES, SIZE = 44, 8  # five batches of eight and one of four: with groups of two, four or five the last is uneven
SGD = partial(torch.optim.SGD, lr=0.2, momentum=0.9)


def tokens(*, none: bool = False) -> tuple[Tensor, Tensor]:
    """Sequences of four tokens, of which some are ignored; with `none`, all of some batches."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 4, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (SAMPLES, 4), generator=generator)
    y[torch.rand(SAMPLES, 4, generator=generator) < torch.arange(SAMPLES).view(-1, 1) / SAMPLES] = IGNORED
    if none:
        y[:SIZE] = y[3 * SIZE : 4 * SIZE] = IGNORED
    return x, y


class Tokens(BaseModel):
    """Predicts tokens; the loss is a mean over those that are not ignored, whose number it returns."""

    def __init__(self, count: bool = True, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.count = count
        self.layer = nn.Linear(3, 5).to(dtype)

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        scores = self.layer(x.to(self.layer.weight.dtype))
        if y is None or mode != "loss":
            return scores
        losses = {"loss": cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=IGNORED)}
        return losses | ({"num_items": (y != IGNORED).sum()} if self.count else {})


class Two(Tokens):
    """Two layers with an optimizer each, which take turns."""

    optimizer_groups = {"a": "layer", "b": "other"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(3, 5).double()

    def train_steps(self, batch: Any) -> Iterator[tuple[str, Any]]:
        x, y = batch
        yield "a", self(x, y, mode="loss")
        loss = cross_entropy(self.other(x).flatten(0, 1), y.flatten(), ignore_index=IGNORED)
        yield "b", {"loss": loss, "num_items": (y != IGNORED).sum()}


class Squares(BaseModel):
    """A loss that is a mean over samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1).double()

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        return {"loss": (self.layer(x).squeeze(-1) - 1).square().mean()}


class Sequences(Data):
    """Tokens for training and validation, in batches of one size."""

    spec: Any = {}  # noqa: RUF012

    def __init__(
        self,
        batch_size: int,
        *,
        none: bool = False,
        shuffle: bool = False,
        dtype: torch.dtype = torch.float64,
        splits: tuple[str, ...] = ("train",),
    ) -> None:
        self.splits = splits
        x, y = tokens(none=none)
        self.tensors, self.batch_size, self.shuffle = (x.to(dtype), y), batch_size, shuffle

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        return TensorLoader(
            self.tensors, self.batch_size, shuffle=self.shuffle and split == "train", seed=seed, device=device
        )


def trained(model: nn.Module, batch_size: int, accumulate: int, none: bool = False, **more: Any) -> Runner:
    settings = {"optim": SGD, "hooks": {}, "loop": EpochBasedTrainLoop(3), "device": "cpu"} | more
    runner = Runner(model, Sequences(batch_size, none=none), accumulate=accumulate, **settings)
    runner.train()
    return runner


def close(found: nn.Module, expected: nn.Module, tolerance: float = 1e-12) -> None:
    for own, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)


def differs(found: nn.Module, expected: nn.Module) -> bool:
    pairs = zip(found.parameters(), expected.parameters(), strict=True)
    return any(not torch.allclose(own, other, rtol=1e-4) for own, other in pairs)


@pytest.mark.parametrize("none", [False, True], ids=["", "none"])
@pytest.mark.parametrize("accumulate", [2, 4, 5])
@pytest.mark.parametrize("more", [{}, {"clip_grad_norm": 0.05}, {"clip_grad_value": 0.01}], ids=str)
def test_a_group_is_one_batch(accumulate: int, more: dict[str, Any], none: bool) -> None:
    """Batches of which all targets are ignored have no loss, and weigh nothing."""
    whole = trained(Tokens(), SIZE * accumulate, 1, none and accumulate == 5, **more)
    close(trained(Tokens(), SIZE, accumulate, none and accumulate == 5, **more).model, whole.model)
    by_batches = trained(Tokens(), SIZE, accumulate, accumulate_by="batches", **more)
    assert differs(by_batches.model, whole.model)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_without_items_samples_weigh(accumulate: int) -> None:
    whole = trained(Squares(), SIZE * accumulate, 1)
    close(trained(Squares(), SIZE, accumulate).model, whole.model)
    means = trained(Squares(), SIZE, accumulate, accumulate_by="batches")
    assert differs(means.model, whole.model)


class Stream(IterableDataset[Any]):
    """The samples one by one, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return zip(*tokens(), strict=True)


@pytest.mark.parametrize("model", [Tokens, Squares])
def test_the_last_group_of_a_stream_is_weighed_too(model: Any) -> None:
    whole = trained(model(), SIZE * 4, 1)
    loop = EpochBasedTrainLoop(3)
    stream = Runner(
        model(), {"train": DataLoader(Stream(), SIZE)}, SGD, hooks={}, loop=loop, device="cpu", accumulate=4
    )
    stream.train()
    close(stream.model, whole.model)


def test_the_mean_of_means_is_an_option() -> None:
    by_hand = Squares()
    optimizer = SGD(by_hand.parameters())
    x, y = tokens()
    parts = [(x[at : at + SIZE], y[at : at + SIZE]) for at in range(0, SAMPLES, SIZE)]
    for _ in range(3):
        for group in (parts[:4], parts[4:]):
            optimizer.zero_grad()
            losses = [by_hand(*part, mode="loss")["loss"] for part in group]
            torch.stack(losses).mean().backward()
            optimizer.step()
    close(trained(Squares(), SIZE, 4, accumulate_by="batches").model, by_hand)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.005)])
def test_mixed_precision(precision: str, tolerance: float) -> None:
    runs = [
        trained(Tokens(dtype=torch.float32), size, accumulate, precision=precision, clip_grad_norm=0.5)
        for size, accumulate in ((4 * SIZE, 1), (SIZE, 4))
    ]
    close(runs[1].model, runs[0].model, tolerance)


def test_several_optimizers() -> None:
    optim = {"a": SGD, "b": partial(torch.optim.SGD, lr=0.05)}
    whole = trained(Two(), 4 * SIZE, 1, optim=optim, clip_grad_norm=0.05)
    close(trained(Two(), SIZE, 4, optim=optim, clip_grad_norm=0.05).model, whole.model)


@pytest.mark.parametrize("count", [True, False], ids=["items", "samples"])
@pytest.mark.parametrize("shuffle", [True, False], ids=["own batches", "shared batches"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_stacks_follow_their_members(count: bool, shuffle: bool, precision: str) -> None:
    def config(seed: int) -> dict[str, Any]:
        return {
            "seed": seed,
            "device": "cpu",
            "model": {"_target_": Tokens, "count": count, "dtype": torch.float32},
            "data": Sequences(SIZE, shuffle=shuffle, dtype=torch.float32),
            "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1 * (1 + seed)},
            "loop": {"_target_": EpochBasedTrainLoop, "max_epochs": 2},
            "hook": {},
            "precision": precision,
            "accumulate": 4,
            "clip_grad_norm": 0.5,
        }

    stack = FusedRunner([config(seed) for seed in range(3)])
    stack.train()
    for seed, member in enumerate(stack.members):
        alone = Runner.from_cfg(config(seed))
        alone.train()
        close(member.model, alone.model, 1e-5 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize("count", [True, False], ids=["items", "samples"])
@pytest.mark.usefixtures("capturable_on_the_cpu")
def test_a_captured_step_weighs_as_the_step_does(count: bool) -> None:
    """Items are counted on the device, so that one graph serves batches of any number of items."""
    batches = list(Sequences(SIZE).loader("train", seed=0, device=torch.device("cpu")).batches())
    states, graph = [], RecordedGraph()
    for captured in (False, True):
        runner = Runner(
            Tokens(count), Sequences(SIZE), SGD, hooks={}, loop=EpochBasedTrainLoop(1), device="cpu", accumulate=4
        )
        step: Any = runner.step
        if captured:
            step = CapturedStep(step, graph, dict(runner.model.named_modules()))
        for _ in range(8):
            for position, batch in enumerate(batches):
                step(batch, position, len(batches))
        states.append(runner.model.state_dict())
    assert graph.replays > 3 * len(batches)
    same(states[1], states[0], 1e-12)


@pytest.mark.parametrize("count", [True, False], ids=["items", "samples"])
def test_a_group_that_is_interrupted_is_continued(tmp_path: Path, count: bool) -> None:
    for name, hooks in (("whole", {}), ("cut", {"end": InterruptAt(5), "save": Checkpoint()}), ("cut", {})):
        runner = trained(Tokens(count), SIZE, 4, hooks=hooks, work_dir=tmp_path / name, resume=True)
        if name == "whole":
            expected = runner.model.state_dict()
    assert runner.iter == 18
    assert list((tmp_path / "cut" / "checkpoints").glob("iter_*5.pt"))
    same(runner.model.state_dict(), expected)


@pytest.mark.parametrize("other", [1, 2, 8])
def test_another_length_within_a_group_is_refused(tmp_path: Path, other: int) -> None:
    trained(Tokens(), SIZE, 4, hooks={"end": InterruptAt(2), "save": Checkpoint()}, work_dir=tmp_path)
    said = rf"^accumulate: {other} is invalid. Expected 4, the value of the checkpoint, which was saved within a group"
    with pytest.raises(ConfigError, match=said):
        trained(Tokens(), SIZE, other, work_dir=tmp_path, resume=True)
    config = {
        "device": "cpu",
        "model": {"_target_": Tokens},
        "data": Sequences(SIZE),
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.2, "momentum": 0.9},
        "loop": {"_target_": EpochBasedTrainLoop, "max_epochs": 3},
        "hook": {},
        "accumulate": other,
        "resume": str(next((tmp_path / "checkpoints").glob("*.pt"))),
    }
    with pytest.raises(ConfigError, match=said):
        FusedRunner([config | {"seed": seed} for seed in range(2)]).train()


@pytest.mark.parametrize("count", [True, False], ids=["items", "samples"])
@pytest.mark.parametrize("before", [2, 4])
def test_a_group_starts_where_no_gradients_are_pending(tmp_path: Path, before: int, count: bool) -> None:
    """After two iterations, the groups are those of `accumulate=2`."""
    for length, accumulate in ((2, before), (6, 4)):
        more = {"loop": IterBasedTrainLoop(length), "hooks": {"save": Checkpoint()}}
        runner = trained(Tokens(count), SIZE, accumulate, **more, work_dir=tmp_path, resume=True)
    assert runner.iter == 6
    close(runner.model, trained(Tokens(count), SIZE, 2, loop=IterBasedTrainLoop(6)).model)


class Losses(Hook):
    def __init__(self) -> None:
        self.all: list[float] = []

    def after_val_loss(self, runner: Runner, losses: Any) -> None:
        self.all.append(losses["val_loss/loss"])


def test_logged_losses_are_weighed_alike(tmp_path: Path) -> None:
    """The point of a group is the loss of the group; validation by losses gives the loss of the whole set."""
    x, y = tokens(none=True)
    own = Losses()
    loop = EpochBasedTrainLoop(1, workflow=[["val", 1], ["train", 1]])
    runner = Runner(
        Tokens(),
        Sequences(SIZE, none=True, splits=("train", "val")),
        partial(torch.optim.SGD, lr=0.0),
        hooks={"logger": Logger(interval=3), "own": own},
        metrics={"loss": CrossEntropy()},
        loop=loop,
        device="cpu",
        accumulate=3,
        work_dir=tmp_path,
    )
    runner.train()
    model = Tokens()
    points = [record["values"] for record, _ in read(tmp_path / "metrics.jsonl") if record["kind"] == "metrics"]
    found = [values["train/loss"] for values in points if "train/loss" in values]
    expected = [
        model(x[part], y[part], mode="loss")["loss"].item() for part in (slice(3 * SIZE), slice(3 * SIZE, None))
    ]
    assert found == pytest.approx(expected, rel=1e-12)
    assert own.all == pytest.approx([model(x, y, mode="loss")["loss"].item()], rel=1e-12)


def test_another_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"accumulate_by: 'tokens' is invalid. Expected one of items, batches"):
        trained(Tokens(), SIZE, 2, accumulate_by="tokens")
