"""Numbers of modules in which members differ: each follows its single run, with the random draws of that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lane_jobs import Config, Points, config, follows, solo
from torch import Tensor, nn

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import Unfusable
from trainyard.fused.feed import LaneQueue
from trainyard.fused.runner import FusedRunner
from trainyard.fused.train import ALLOWED, NOT_COMPARED
from trainyard.hooks import Hook
from trainyard.models import MLP, Supervised, Transformer
from trainyard.sweep.kinds import kinds


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


SMOOTHED = {"_target_": "torch.nn.CrossEntropyLoss"}


def job(seed: int, dropout: float, smoothing: float = 0.1, epochs: int = 4, **more: Any) -> Config:
    loss = SMOOTHED | {"label_smoothing": smoothing}
    model = {"_target_": MLP, "in_features": 2, "num_classes": 2, "hidden": [6, 4], "dropout": dropout, "loss": loss}
    return config(seed, epochs, **({"model": model, "data": {"_target_": Points}} | more))


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0, 0, 0)], ids=["different seeds", "one seed"])
def test_dropout_and_label_smoothing_differ(seeds: tuple[int, ...]) -> None:
    given = list(zip(seeds, (0.1, 0.5, 0.2), (0.3, 0.1, 0.0), strict=True))
    fused = FusedRunner([job(*each) for each in given])
    fused.train()
    for member, each in zip(fused.all_members, given, strict=True):
        follows(member, solo(job(*each)))


class Epochs(Hook):
    """Notes which lanes train in the epochs of a stack."""

    stackable = own_places = True

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def before_train_epoch(self, runner: Any) -> None:
        self.seen.append([member.seed for member in runner.members])


def test_a_job_with_another_dropout_joins_members_of_one() -> None:
    given = [(0, 0.2, 0.1, 3), (1, 0.2, 0.1, 1), (2, 0.4, 0.3, 3), (3, 0.2, 0.1, 1)]
    queue = LaneQueue([job(*each) for each in given[2:]])
    fused = FusedRunner([job(*each) for each in given[:2]], feed=queue)
    epochs = Epochs()
    fused.added_hooks = {"epochs": epochs}
    fused.train()
    assert not queue.refusals
    assert epochs.seen == [[0, 1], [0, 2], [0, 2], [3, 2]]
    for member, each in zip(fused.all_members, given, strict=True):
        follows(member, solo(job(*each)))


def test_a_lane_goes_on_with_the_numbers_of_another() -> None:
    class Copy(Hook):
        stackable = own_places = True

        def after_train_epoch(self, runner: Any) -> None:
            if runner.epoch == 2:
                runner.occupancy.copy(0, 1)

    fused = FusedRunner([job(0, 0.1, 0.2) | {"hook": {"copy": Copy()}}, job(1, 0.4, 0.0) | {"hook": {"copy": Copy()}}])
    fused.train()
    first, second = fused.all_members
    for tensor, expected in zip(second.model.state_dict().values(), first.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected)
    (dropout,) = {module.p for module in second.model.modules() if isinstance(module, nn.Dropout)}
    assert dropout == 0.1


class Tokens(Data):
    """Sequences in which each token follows from the one before."""

    def __init__(self) -> None:
        self.spec = {"vocab_size": 5, "context_length": 6}
        self.splits = ("train", "val")
        first = torch.randint(5, (24, 1), generator=torch.Generator().manual_seed(0))
        self.x = (first + torch.arange(7)) % 5

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        return TensorLoader((self.x[:, :-1], self.x[:, 1:]), 8, shuffle=split == "train", seed=seed, device=device)


def test_the_dropout_of_attention_differs() -> None:
    def own(seed: int, dropout: float) -> Config:
        model = {"_target_": Transformer, "vocab_size": 5, "context_length": 6, "dim": 8, "heads": 2, "layers": 1}
        return config(seed, 3, model=model | {"dropout": dropout}, data={"_target_": Tokens}, metric={})

    given = [(0, 0.1), (1, 0.3), (1, 0.2)]
    fused = FusedRunner([own(*each) for each in given])
    fused.train()
    for member, each in zip(fused.all_members, given, strict=True):
        follows(member, solo(own(*each)))


class Encoder(nn.Module):
    """An encoder of torch's, of two tokens of one number each."""

    def __init__(self, dropout: float, weights: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, dropout, batch_first=True) if weights else None
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.embed(x.unsqueeze(-1)))
        if self.attention is not None:
            x = x + self.attention(x, x, x)[0]
        return self.head(x.mean(1))


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("joins", [False, True])
def test_the_dropout_of_torch_s_own_encoder_differs(weights: bool, joins: bool) -> None:
    def own(seed: int, dropout: float, epochs: int) -> Config:
        net = {"_target_": Encoder, "dropout": dropout, "weights": weights}
        return config(seed, epochs, model={"_target_": Supervised, "net": net}, data={"_target_": Points})

    given = [(0, 0.1, 3), (1, 0.1 if joins else 0.4, 1), (2, 0.3, 2)]
    jobs = [own(*each) for each in given]
    queue = LaneQueue(jobs[2:] if joins else [])
    fused = FusedRunner(jobs[:2] if joins else jobs, feed=queue if joins else None)
    fused.train()
    assert not queue.refusals
    for member, each in zip(fused.all_members, given, strict=True):
        follows(member, solo(own(*each)))


class Scaled(nn.Module):
    """Code that computes with a number of its own."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.1, self.training) / (1 + self.temperature)


def test_a_number_of_own_code_differs() -> None:
    def own(seed: int, temperature: float) -> Config:
        net = {"_target_": Scaled, "temperature": temperature}
        return config(seed, 3, model={"_target_": Supervised, "net": net})

    given = [(0, 0.5), (1, 2.0)]
    fused = FusedRunner([own(*each) for each in given])
    fused.train()
    for member, each in zip(fused.all_members, given, strict=True):
        follows(member, solo(own(*each)))


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.LeakyReLU, "negative_slope"), (nn.Dropout1d, "p")],
)
def test_a_number_that_a_module_takes_as_no_tensor_is_named(layer: Any, name: str) -> None:
    class Net(nn.Sequential):
        def __init__(self, number: float) -> None:
            super().__init__(nn.Linear(2, 2), layer(number))

    jobs = [
        config(seed, 2, model={"_target_": Supervised, "net": {"_target_": Net, "number": 0.1 + seed / 10}})
        for seed in range(2)
    ]
    with pytest.raises(Unfusable, match=rf"the models differ in net\.1\.{name}"):
        FusedRunner(jobs).prepare()


def test_a_number_that_a_partial_function_holds_is_named() -> None:
    def own(seed: int) -> Config:
        loss = {
            "_target_": "torch.nn.functional.cross_entropy",
            "_partial_": True,
            "label_smoothing": 0.1 + seed / 1000,
        }
        made = job(seed, 0.1)
        return made | {"model": made["model"] | {"loss": loss}}

    with pytest.raises(Unfusable, match=r"the models differ in loss\w*, which is neither a parameter nor a buffer"):
        FusedRunner([own(seed) for seed in range(2)]).prepare()


def test_validation_by_losses_smooths_as_each_member_does(tmp_path: Path) -> None:
    """The average of a member that joined is evaluated with its numbers."""
    plain = {"metric": {}, "objective": "val/loss"}
    given = [(0, 0.2, 0.1, 2), (1, 0.2, 0.1, 1), (2, 0.4, 0.3, 2)]
    fused = FusedRunner([job(*each, **plain) for each in given[:2]], feed=LaneQueue([job(*given[2], **plain)]))
    fused.train()
    for member, each in zip(fused.all_members, given, strict=True):
        follows(member, solo(job(*each, **plain)))


def test_jobs_that_drop_out_are_of_one_kind_and_those_that_do_not_of_another() -> None:
    def of(dropout: float, smoothing: float, width: int = 8) -> Config:
        loss = {"_target_": "Loss", "label_smoothing": smoothing}
        return {"seed": 0, "model": {"_target_": "M", "net": {"dropout": dropout, "width": width}, "loss": loss}}

    jobs = [of(0.1, 0.2), of(0.2, 0.1), of(0.0, 0.1), of(0.1, 0), of(0.3, 0.3, 16), of(0.0, 0.3)]
    found = kinds(jobs, ALLOWED, NOT_COMPARED)
    assert [kind.members for kind in found] == [[0, 1], [2, 5], [3], [4]]
