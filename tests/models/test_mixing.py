"""Mixup and CutMix: what they do to a batch, and that members of a group draw their own."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from trainyard.config.build import build, fill_auto
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.schema import check
from trainyard.errors import ConfigError, TrainyardError
from trainyard.models import CNN, CutMix, DataPreprocessor, Mixup, RandomChoice, mixing, total_loss

CONF = str(Path(__file__).parents[2] / "conf")
C = 4


def images(size: int = 6, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    """Image i is all i: a mixed one tells how much it has of which."""
    x = torch.arange(size, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, height, width)
    return x.clone(), torch.arange(size) % C


def one_hot(y: Tensor) -> Tensor:
    return nn.functional.one_hot(y, C).float()


def test_examples_in_docstrings_run() -> None:
    result = doctest.testmod(mixing)
    assert (result.attempted > 4, result.failed) == (True, 0)


@given(st.integers(0, 2**31), st.floats(0.05, 8), st.floats(0, 0.9))
@settings(max_examples=60)
def test_mixup_mixes_inputs_and_targets_alike(seed: int, alpha: float, smoothing: float) -> None:
    torch.manual_seed(seed)
    x, y = images()
    mixed, shares = Mixup(C, alpha, label_smoothing=smoothing)((x, y))
    kept = mixed[1, 0, 0, 0]  # of 1, beside 0
    torch.testing.assert_close(mixed, kept * x + (1 - kept) * x.roll(1, 0))
    smooth = one_hot(y) * (1 - smoothing) + smoothing / C
    torch.testing.assert_close(shares, kept * smooth + (1 - kept) * smooth.roll(1, 0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))


@given(st.integers(0, 2**31), st.floats(0.1, 4), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=60)
def test_cutmix_takes_a_rectangle_and_mixes_targets_by_its_area(seed: int, alpha: float, h: int, w: int) -> None:
    torch.manual_seed(seed)
    x, y = images(6, h, w)
    mixed, shares = CutMix(C, alpha)((x, y))
    foreign = mixed != x
    assert torch.equal(foreign, foreign[:1].expand_as(foreign)), "one rectangle for all"
    assert torch.equal(mixed, torch.where(foreign, x.roll(1, 0), x))
    rows, columns = foreign[0, 0].any(1), foreign[0, 0].any(0)
    assert torch.equal(foreign[0, 0], rows[:, None] & columns), "a rectangle"
    for side in (rows, columns):
        places = side.nonzero().flatten().tolist()
        assert places == list(range(places[0], places[-1] + 1) if places else []), "in one piece"
    area = foreign[0].float().mean()
    torch.testing.assert_close(shares, (1 - area) * one_hot(y) + area * one_hot(y).roll(1, 0))


def test_shares_follow_the_beta_distribution() -> None:
    torch.manual_seed(0)
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    for alpha in (0.2, 1.0, 5.0):
        mixup = Mixup(2, alpha)
        drawn = torch.stack([1 - mixup((x, y))[0][0, 0] for _ in range(3000)])
        assert abs(drawn.mean() - 0.5) < 0.03
        assert abs(drawn.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_probability(kind: Any) -> None:
    torch.manual_seed(0)
    x, y = images()
    never = kind(C, 1.0, probability=0.0)((x, y))
    assert torch.equal(never[0], x)
    assert torch.equal(never[1], one_hot(y))
    sometimes = kind(C, 1.0, probability=0.3)
    mixed = [not torch.equal(sometimes((x, y))[0], x) for _ in range(400)]
    assert 60 < sum(mixed) < 160, "0.3 of 400; of a CutMix some rectangles are empty"


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_evaluation_takes_the_batch_as_it_is(kind: Any) -> None:
    batch = images()
    assert kind(C).eval()(batch) is batch
    assert RandomChoice([kind(C)]).eval()(batch) is batch


def test_batches_of_other_forms() -> None:
    torch.manual_seed(0)
    x, y = images()
    named = Mixup(C)({"image": x, "label": y})
    assert (list(named), named["label"].shape) == (["image", "label"], (6, C))
    shares = Mixup(C)((x, one_hot(y)))[1]
    assert shares.shape == (6, C), "shares are mixed as they are"
    assert CutMix(C)((x.byte(), y))[0].dtype == torch.uint8
    assert Mixup(C)((x.double(), y))[1].dtype == torch.float64


@pytest.mark.parametrize(
    ("module", "batch", "told"),
    [
        (Mixup(C), images()[0], "one input and one target"),
        (Mixup(C), (*images(), images()[1]), "one input and one target"),
        (Mixup(C), {"image": images()[0]}, "one input and one target"),
        (Mixup(C), (images()[0].byte(), images()[1]), "Put a DataPreprocessor before Mixup"),
        (
            Mixup(C),
            (images()[0], images()[1].view(2, 3)),
            r"^Mixup needs classes \[B\], as integers, or class.*\[2, 3\] int64",
        ),
        (
            Mixup(C),
            (images()[0], torch.rand(6, 3)),
            r"class probabilities \[B, 4\], as floats, but the target is \[6, 3\]",
        ),
        (
            CutMix(C),
            (torch.rand(6, 5), images()[1]),
            r"CutMix needs images \[B, ..., H, W\], but the input is \[6, 5\]",
        ),
        (
            RandomChoice([Mixup(C), DataPreprocessor()], [1, 1]),
            images(),
            "choices of RandomChoice return tensors of different shapes",
        ),
    ],
)
def test_batches_that_cannot_be_mixed(module: nn.Module, batch: Any, told: str) -> None:
    with pytest.raises(TrainyardError, match=told):
        module(batch)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Mixup("auto"), "num_classes"),
        (lambda: Mixup(C, 0), "alpha"),
        (lambda: CutMix(C, "1"), "alpha"),
        (lambda: CutMix(C, 1, 1.5), "probability"),
        (lambda: Mixup(C, 1, True), "probability"),
        (lambda: Mixup(C, 1, 1, 1), "label_smoothing"),
        (lambda: RandomChoice([]), "choices"),
        (lambda: RandomChoice([torch.ones(1)]), "choices"),
        (lambda: RandomChoice([Mixup(C)], [1, 2]), "weights"),
        (lambda: RandomChoice([Mixup(C)], [0]), "weights"),
        (lambda: CNN(1, C, data_preprocessor=[3]), "data_preprocessor"),
    ],
)
def test_wrong_arguments(make: Any, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert error.value.key == key


class Add(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, batch: Any) -> Any:
        return (batch[0] + self.number, batch[1])


def test_one_of_several_is_drawn_as_often_as_its_weight_says() -> None:
    torch.manual_seed(0)
    either = RandomChoice({"a": Add(1), "none": None, "b": Add(2), "c": Add(3)}, weights=[1, 2, 1])
    drawn = torch.stack([either((torch.zeros(1), torch.zeros(1)))[0] for _ in range(2000)]).flatten()
    counts = torch.bincount(drawn.long()).tolist()
    assert counts[0] == 0
    assert [round(count / 500) for count in counts[1:]] == [1, 2, 1]


def test_preprocessors_follow_one_another() -> None:
    x, y = images()
    steps = [DataPreprocessor(1.0, 2.0), Mixup(C, probability=0.0)]
    for given_ in (steps, {"normalize": steps[0], "off": None, "mix": steps[1]}):
        inputs, shares = CNN(1, C, [4], data_preprocessor=given_).preprocess((x, y))
        torch.testing.assert_close(inputs, (x - 1) / 2)
        assert torch.equal(shares, one_hot(y))


@pytest.mark.parametrize("shared", [True, False])
def test_members_of_a_stack_draw_their_own(shared: bool) -> None:
    torch.manual_seed(0)
    members = 5
    model = nn.ModuleDict({"first": nn.Linear(1, 1)})

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(model)
            self.mix = RandomChoice([Mixup(C, 0.4), CutMix(C)])

        def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            mixed: tuple[Tensor, Tensor] = self.mix(batch)
            return mixed

    steps = [Step() for _ in range(members)]
    base = copy.deepcopy(steps[0]).to("meta")
    params, buffers = stack_module_state(steps)
    batch = images()
    if not shared:
        batch = tuple(torch.stack([each] * members) for each in batch)  # type: ignore[assignment]

    def one(p: Any, b: Any, own: Any) -> Any:
        return functional_call(base, (p, b), (own,))

    x, y = vmap(one, in_dims=(0, 0, None if shared else 0), randomness="different")(params, buffers, batch)
    assert (x.shape, y.shape) == ((members, 6, 1, 8, 8), (members, 6, C))
    assert len({tuple(shares.flatten().tolist()) for shares in y}) == members
    torch.testing.assert_close(y.sum(2), torch.ones(members, 6))
    # What a member has of the image before each: as much as of that one's class.
    torch.testing.assert_close(1 - x[:, 1].mean((1, 2, 3)), y[:, 1, 0])


def test_nothing_is_read_from_the_device() -> None:
    """On meta tensors there is nothing to read: an `.item()` or a branch on a value would raise."""
    batch = tuple(each.to("meta") for each in images())
    x, y = RandomChoice([Mixup(C), CutMix(C)])(batch)
    assert (x.device.type, y.shape) == ("meta", (6, C))


OPTIONS = sorted(path.stem for path in (Path(CONF) / "model" / "data_preprocessor").glob("*.yaml"))
FACTS = {"in_channels": 1, "num_classes": C, "in_features": 64}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("model", ["cnn", "mlp", "resnet"])
def test_every_option_composes_with_every_image_model_and_trains(model: str, option: str) -> None:
    needed = {"augment": ["model.data_preprocessor.transforms=[{_target_: torch.nn.Tanh}]"]}
    chosen = [f"model={model}", f"+model/data_preprocessor={option}", *needed.get(option, [])]
    with initialize_config_dir(CONF, **VERSION_BASE):
        cfg = compose("train", [*chosen, "work_dir=x", "tracker=none"])
    values = check(cfg)
    built = build(fill_auto(values["model"], "model", FACTS), "model")
    loss = total_loss(built.train_step(images()))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in built.parameters())
    assert built.eval().val_step(images()).shape == (6, C)


def test_options_are_combined_by_name() -> None:
    """As docs/models.md says."""
    at = "+model/data_preprocessor@model.data_preprocessor"
    overrides = [f"{at}.normalize=normalize", f"{at}.mix=mixup_cutmix", "work_dir=x", "tracker=none"]
    with initialize_config_dir(CONF, **VERSION_BASE):
        cfg = compose("train", ["model=cnn", *overrides, "model.data_preprocessor.mix.choices.mixup.alpha=0.4"])
    built = build(fill_auto(check(cfg)["model"], "model", FACTS), "model")
    normalize, mix = built.data_preprocessor
    assert isinstance(normalize, DataPreprocessor)
    assert [(type(each), each.alpha) for each in mix.choices] == [(Mixup, 0.4), (CutMix, 1.0)]
