"""Each member of a stack draws the random numbers that it would draw alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import InterruptAt
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trainyard import rng_state
from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import Unfusable
from trainyard.fused.lanes import Lane, Lanes
from trainyard.fused.model import StackedModel
from trainyard.fused.probe import probe
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Hook
from trainyard.models import BaseModel
from trainyard.runner import Runner, checkpoint
from trainyard.step.cuda_graph import graph

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*weight_norm.*is deprecated")

Config = dict[str, Any]
Sample = Callable[[Tensor], Tensor]

SAMPLES: dict[str, Sample] = {
    "dropout": lambda x: F.dropout(x, 0.4),
    "dropout in place": lambda x: F.dropout(x + 0, 0.4, True, True),
    "dropout1d": lambda x: F.dropout1d(x, 0.4),
    "dropout2d": lambda x: F.dropout2d(x[..., None], 0.4),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.4, True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.4, True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.4, True)[0],
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.3),
    "randn": lambda x: torch.randn(5, 6) * x.sum(),
    "rand of no size": lambda x: torch.rand(()) + x.sum(),
    "randint": lambda x: torch.randint(7, (9,)) + torch.randint(2, 7, (9,)) + x.sum(),
    "randperm": lambda x: x[:, torch.randperm(x.shape[1])],
    "likes": lambda x: (
        torch.randn_like(x) + torch.rand_like(x) + torch.randint_like(x, 5) + torch.randint_like(x, 2, 5)
    ),
    "like a transposed one": lambda x: torch.randn_like(x.transpose(0, 2)) + 1,
    "normal": lambda x: torch.normal(x, x.abs()) + torch.normal(x, 0.3) + torch.normal(0.5, x.abs()),
    "normal of a size": lambda x: torch.normal(0.0, 1.0, (4,)) + x.sum(),
    "bernoulli": lambda x: (
        torch.bernoulli(x.sigmoid()) + torch.bernoulli(x, 0.3) + 2 * torch.empty_like(x).bernoulli_(0.5)
    ),
    "bernoulli_ of shares": lambda x: torch.empty_like(x).bernoulli_(x.sigmoid()),
    "multinomial": lambda x: (
        torch.multinomial(x[0].softmax(-1), 2) + torch.multinomial(x[0, 0].softmax(-1), 1) + x.sum()
    ),
    "normal_": lambda x: torch.empty(20).normal_() * x.sum(),
    "uniform_": lambda x: x.new_empty(4, 4).uniform_(-1, 1) * x.sum(),
    "exponential_": lambda x: torch.empty_like(x).exponential_(2.0),
    "random_": lambda x: torch.empty(4).random_(3) + torch.empty(4).random_(2, 8) + x.sum(),
    "others in place": lambda x: (
        x.new_empty(4).cauchy_() + x.new_empty(4).geometric_(0.3) + x.new_empty(4).log_normal_()
    ),
    "poisson": lambda x: torch.poisson(x.exp()),
    "gumbel_softmax": F.gumbel_softmax,
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x[None], 2, output_size=2),
    "Normal": lambda x: D.Normal(x, x.exp()).rsample(),
    "Laplace": lambda x: D.Laplace(x, x.exp()).rsample(),
    "Gamma": lambda x: D.Gamma(x.exp(), x.exp()).rsample(),
    "Categorical": lambda x: D.Categorical(logits=x).sample() + x.sum(),
    "Bernoulli": lambda x: D.Bernoulli(logits=x).sample(),
    "StudentT": lambda x: D.StudentT(x.exp() + 2).rsample(),
    "MultivariateNormal": lambda x: D.MultivariateNormal(x, torch.eye(3, dtype=x.dtype)).rsample(),
}
"""Functions of `x` `[4, 3, 3]` that draw random numbers."""


class Sampled(nn.Module):
    """Draws twice by a sample, and once more by a function that draws equally often whatever came before."""

    def __init__(self, sample: Sample, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.sample = sample

    def forward(self, x: Tensor, own: bool = True, *, mode: str) -> Tensor:
        x = self.scale * x if own else x
        return torch.cat([self.sample(x).flatten(), self.sample(x).flatten(), torch.rand(3)]).double()


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    before = rng_state.state()
    yield
    rng_state.restore(before)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def lanes_of(seeds: Sequence[int]) -> Lanes:
    found = [Lane() for _ in seeds]
    for lane, seed in zip(found, seeds, strict=True):
        lane.begin(seed)
    lanes = Lanes(found)
    lanes.share()
    return lanes


@pytest.mark.parametrize("seeds", [(1, 2, 3), (4, 4, 4), (5, 5, 6)])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_bits_are_those_of_a_single_run(name: str, seeds: tuple[int, ...]) -> None:
    """Of a tensor that is a member's own, and of one that all share; also where how much is drawn depends on values."""
    sample = SAMPLES[name]
    models = [Sampled(sample, 0.5 + k) for k in range(3)]
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    for own in (True, False) if name != "dropout in place" else (True,):
        expected = []
        for model, seed in zip(models, seeds, strict=True):
            rng_state.seed_all(seed)
            expected.append(model(x, own, mode="tensor"))
        rng_state.seed_all(99)
        stack = StackedModel(models, lanes=lanes_of(seeds))
        before = torch.get_rng_state()
        found = stack(x, own, mode="tensor")
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)
        if len(set(seeds)) > 1:
            assert torch.equal(torch.get_rng_state(), before), "the process's generator has moved"


# -- whole trainings ---------------------------------------------------------------------------------------------------


class Vae(BaseModel):
    """A variational autoencoder; it samples in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 8), nn.Linear(4, 6)

    def forward(self, x: Tensor, y: Tensor | None = None, *, mode: str) -> Any:
        mean, log_scale = self.encoder(x).chunk(2, -1)
        code = D.Normal(mean, log_scale.exp()).rsample()
        loss = (
            (self.decoder(code) - x).square().mean() + 0.01 * mean.square().mean() + 0.01 * torch.randn_like(x).mean()
        )
        return {"loss": loss} if mode == "loss" else self.decoder(code)[:, :3]


class Diffusion(BaseModel):
    """Predicts the noise of a noisy input, whose level is drawn for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 6))

    def forward(self, x: Tensor, y: Tensor | None = None, *, mode: str) -> Any:
        time = torch.randint(1, 10, (len(x), 1)) / 10
        noise = torch.randn(x.shape)
        kept = (torch.rand(len(x), 1) > 0.1).to(x.dtype)
        guess = self.net(torch.cat([(1 - time) * x + time * noise, time * kept], 1))
        return {"loss": F.mse_loss(guess, noise)} if mode == "loss" else guess[:, :3]


class Layers(BaseModel):
    """Any layers in a row, made under the member's seed; they read six numbers and give as many."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.net = nn.ModuleList([LAYERS[name]() for name in names])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor | None = None, *, mode: str) -> Any:
        for name, layer in zip(self.names, self.net, strict=True):
            match name:
                case "rnn" | "lstm" | "gru":
                    x = x + layer(x.view(-1, 3, 2))[0].flatten(1)
                case "attention":
                    row = x.view(-1, 3, 2)
                    x = x + layer(row, row, row)[0].flatten(1)
                case _:
                    x = layer(x)
        logits = self.head(x)
        return {"loss": F.cross_entropy(logits, y)} if mode == "loss" else logits


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 6),
    "dropout": lambda: nn.Dropout(0.3),
    "alpha": lambda: nn.AlphaDropout(0.2),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "gelu": nn.GELU,
    "attention": lambda: nn.MultiheadAttention(2, 1, dropout=0.2, batch_first=True),
    "rnn": lambda: nn.RNN(2, 2, 2, batch_first=True, dropout=0.2),
    "lstm": lambda: nn.LSTM(2, 1, 2, batch_first=True, bidirectional=True, dropout=0.2),
    "gru": lambda: nn.GRU(2, 2, 2, batch_first=True, dropout=0.2),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(6, 6)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(6, 6)),
}


class Points(Dataset[Any]):
    """Points of three classes; a sample of them can be jittered by torch's generator of this process."""

    def __init__(self, jitter: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(40, 6, generator=generator)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index]
        return (x + self.jitter * torch.randn(6) if self.jitter else x), self.y[index]


class Memory(Data):
    """The points in memory, so that members of different seeds share them."""

    def __init__(self) -> None:
        self.spec = {}
        self.splits = ("train", "val")

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        points = Points()
        return TensorLoader((points.x, points.y), 8, shuffle=split == "train", seed=seed, device=device)


def config(model: Any, seed: int, member: int, **more: Any) -> Config:
    return {
        "model": model,
        "data": Memory(),
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.02 * (1 + member), "momentum": 0.9},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "hook": {},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "device": "cpu",
        "seed": seed,
        "work_dir": None,
    } | more


def same(member: Any, alone: Runner, bound: float = 1e-10) -> None:
    expected = alone.model.state_dict()
    for name, tensor in member.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=bound, atol=bound, msg=name)
    assert member.metrics["val/loss"] == pytest.approx(alone.members[0].metrics["val/loss"], rel=bound, abs=bound)


def trained(values: Config) -> Runner:
    runner = Runner.from_cfg(values)
    runner.train()
    return runner


def follow(configs: Sequence[Config]) -> FusedRunner:
    stack = FusedRunner(configs)
    stack.train()
    for member, values in zip(stack.all_members, configs, strict=True):
        same(member, trained(values))
    return stack


@pytest.mark.parametrize("seeds", [(0, 1, 2), (3, 3, 3), (0, 0, 1)])
@pytest.mark.parametrize("model", [Vae, Diffusion])
def test_generative_models_follow_their_single_runs(model: type[nn.Module], seeds: Sequence[int], double: None) -> None:
    follow([config({"_target_": model}, seed, k) for k, seed in enumerate(seeds)])


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_follows_its_single_runs(name: str, double: None) -> None:
    model = {"_target_": Layers, "names": [name, "dropout"]}
    follow([config(model, seed, k) for k, seed in enumerate((0, 1))])


@settings(max_examples=6)
@given(data=st.data())
def test_any_layers_follow_their_single_runs(data: st.DataObject, double: None) -> None:
    names = data.draw(st.lists(st.sampled_from(list(LAYERS)), min_size=1, max_size=4))
    seeds = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=4))
    accumulate = data.draw(st.integers(1, 2))
    model = {"_target_": Layers, "names": names}
    loop = {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 6, "val_interval": 3}
    follow([config(model, seed, k, accumulate=accumulate, loop=loop) for k, seed in enumerate(seeds)])


def test_data_that_draws_in_this_process(double: None) -> None:
    """With one seed, a single run's model and data draw from one generator, in turns."""
    model = {"_target_": Layers, "names": ["dropout", "linear"]}
    data = {"train": DataLoader(Points(0.1), 8, shuffle=True), "val": DataLoader(Points(), 20)}
    follow([config(model, 1, k, data=data) for k in range(3)])


# -- checkpoints -------------------------------------------------------------------------------------------------------


class Leave(Hook):
    """Stops members at an iteration of each."""

    stackable = True

    def __init__(self, at: dict[int, int]) -> None:
        self.at = at

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        for member in runner.members:
            if self.at.get(member.seed) == runner.iter:
                member.stop("a command or the sweep has ended it")


class LeaveFirst(Hook):
    """Stops the first member at an iteration."""

    stackable = True

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.at:
            runner.members[0].stop("a command or the sweep has ended it")


def written(folder: Path, seed: int, **more: Any) -> Config:
    hooks = {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "interval": 1}}
    more = more | {"hook": hooks | more.get("hook", {})}
    return config({"_target_": Diffusion}, seed, seed, work_dir=str(folder / str(seed)), **more)


def test_each_kind_resumes_the_other(tmp_path: Path, double: None) -> None:
    interrupt = {"interrupt": {"_target_": InterruptAt, "iteration": 7}}
    whole = [trained(written(tmp_path / "whole", seed)) for seed in range(3)]
    for seed in range(3):
        trained(written(tmp_path / "alone", seed, hook=interrupt))
    FusedRunner([written(tmp_path / "stacked", seed, hook=interrupt) for seed in range(3)]).train()
    for seed in range(3):
        own, alone = (
            checkpoint.load(next((tmp_path / kind / str(seed) / "checkpoints").glob("*7.pt")))["random"]
            for kind in ("stacked", "alone")
        )
        assert torch.equal(own["torch"], alone["torch"])
        assert torch.equal(own["python"][1], alone["python"][1])
        assert torch.equal(own["numpy"][1], alone["numpy"][1])
    stack = FusedRunner([written(tmp_path / "alone", seed, resume=True) for seed in range(3)])
    stack.train()
    for seed, (member, expected) in enumerate(zip(stack.all_members, whole, strict=True)):
        same(member, expected)
        same(trained(written(tmp_path / "stacked", seed, resume=True)).members[0], expected)


def test_members_that_leave_and_those_that_stay(tmp_path: Path, double: None) -> None:
    """Each ends with the weights and the generators of its single run."""
    leave = {"leave": {"_target_": Leave, "at": {0: 3, 2: 8}}}
    stack = FusedRunner([written(tmp_path / "stack", seed, hook=leave) for seed in range(4)])
    stack.train()
    for seed, member in enumerate(stack.all_members):
        alone = trained(written(tmp_path / "alone", seed, hook=leave))
        assert (member.iter, member.stop_reason) == (alone.iter, alone.members[0].stop_reason)
        for name, tensor in member.model.state_dict().items():
            torch.testing.assert_close(tensor, alone.model.state_dict()[name], rtol=1e-10, atol=1e-10)
        own, expected = member.random_state(rng_state.state()), rng_state.state()
        assert torch.equal(own["torch"], expected["torch"])


@pytest.mark.parametrize("seeds", [(0, 1, 2), (5, 5, 5)])
def test_a_stack_that_a_member_had_left_goes_on_to_the_same_bits(tmp_path: Path, seeds: Sequence[int]) -> None:
    """The data draws as well, if all have one seed: from the generator of the members that are left."""
    data = {"train": DataLoader(Points(0.1), 8, shuffle=True), "val": DataLoader(Points(), 20)}

    def configs(folder: str, **more: Any) -> list[Config]:
        hooks = {"leave": {"_target_": LeaveFirst, "at": 3}} | more.pop("hook", {})
        shared = {"hook": hooks, "data": data if len(set(seeds)) == 1 else Memory(), **more}
        made = [written(tmp_path / folder / str(k), seed, **shared) for k, seed in enumerate(seeds)]
        return [values | {"optim": values["optim"] | {"lr": 0.01 * (k + 1)}} for k, values in enumerate(made)]

    whole = FusedRunner(configs("whole"))
    whole.train()
    FusedRunner(configs("cut", hook={"interrupt": {"_target_": InterruptAt, "iteration": 7}})).train()
    resumed = FusedRunner(configs("cut", resume=True))
    resumed.train()
    for member, expected in zip(resumed.all_members, whole.all_members, strict=True):
        for name, tensor in member.model.state_dict().items():
            assert torch.equal(tensor, expected.model.state_dict()[name]), (member.index, name)


# -- what a stack cannot follow ----------------------------------------------------------------------------------------


class Custom(BaseModel):
    """Draws in a way that a stack cannot, or not at once, follow."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)
        self.way = way
        self.activation = nn.RReLU()

    def forward(self, x: Tensor, y: Tensor | None = None, *, mode: str) -> Any:
        logits = self.net(x)
        match self.way:
            case "generator":
                logits = logits + torch.randn(3, generator=torch.Generator().manual_seed(0))
            case "unknown":
                logits = logits + F.fractional_max_pool2d_with_indices(x.view(-1, 2, 3), 2, output_size=1)[0].mean()
            case "shared":
                logits = logits + torch.zeros(3).normal_()
            case "shared sum":
                total = torch.zeros(3)
                total += logits.mean(0)
                logits = logits + total
            case "no rule":
                logits = self.activation(logits)
            case "no setup":
                logits = logits + D.Beta(logits.exp(), logits.exp()).rsample()
            case "packed":
                packed = nn.utils.rnn.pack_padded_sequence(x.view(-1, 3, 2), torch.full((len(x),), 3), batch_first=True)
                logits = logits + self.rnn(packed)[1][0]
        return {"loss": F.cross_entropy(logits, y)} if mode == "loss" else logits


class Packed(Custom):
    def __init__(self, way: str) -> None:
        super().__init__(way)
        self.rnn = nn.GRU(2, 3, batch_first=True)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("generator", "the model draws from its own torch.Generator, .*Omit the argument `generator`"),
        ("shared", "the model changes a tensor in place that all members share, .*torch.rand_like"),
        ("shared sum", "the model changes a tensor in place that all members share, .*torch.rand_like"),
        ("no rule", r"torch.vmap has no rule for aten::rrelu: .* \(layer activation, a RReLU; test_lanes.py"),
        ("no setup", "a torch.autograd.Function without setup_context cannot be stacked .*Beta and Dirichlet"),
        ("packed", r"a recurrent layer uses packed sequences, .*use padded sequences.* \(layer rnn, a GRU\)"),
    ],
)
def test_the_plan_says_why_jobs_run_one_by_one(way: str, reason: str) -> None:
    values = [config({"_target_": Packed if way == "packed" else Custom, "way": way}, seed, seed) for seed in range(2)]
    fit = probe(values, 2)
    assert fit.width == 1
    assert re.match(reason, fit.reason or ""), fit.reason


def test_a_function_that_is_not_known_to_draw(double: None) -> None:
    stack = follow([config({"_target_": Custom, "way": "unknown"}, seed, seed) for seed in range(2)])
    assert stack.stack.draws_everywhere


def test_a_stack_without_random_numbers_asks_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = FusedRunner([config({"_target_": Layers, "names": ["linear"]}, seed, seed) for seed in range(2)])
    stack.prepare()

    def asked(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Lanes, "on", asked)
    stack.train()


def test_a_draw_on_the_cpu_is_seen_before_a_capture() -> None:
    lanes = lanes_of((1, 2))
    before = graph._drawn_on_cpu()
    assert graph._drawn_on_cpu() == before
    torch.rand(1, generator=lanes.on(torch.device("cpu"))[1])
    assert graph._drawn_on_cpu() != before


def test_without_the_mode_that_sees_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers are then equal to a single run's in distribution alone."""
    monkeypatch.setattr("trainyard.fused.model.sees_operations", lambda: False)
    stack = FusedRunner([config({"_target_": Layers, "names": ["linear"]}, seed, seed) for seed in range(2)])
    stack.train()
    assert not stack.stack.draws
    with pytest.raises(Unfusable, match="differs"):
        FusedRunner([config({"_target_": Layers, "names": ["dropout"]}, seed, seed) for seed in range(2)]).prepare()
