"""The networks: shapes, parameters, and what their constructors refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainyard.errors import ConfigError
from trainyard.models import CNN, MLP, BaseModel, ResNet, Supervised, Transformer
from trainyard.models.mlp import ACTIVATIONS

IMAGE = {"in_channels": 1, "num_classes": 10}
TEXT = {"vocab_size": 11, "context_length": 8, "dim": 16, "heads": 4, "layers": 2}


@settings(max_examples=20)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=3),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    dropout=st.floats(0, 0.9),
    batch_norm=st.booleans(),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_mlp_takes_any_input_it_can_flatten(
    hidden: list[int], activation: str, dropout: float, batch_norm: bool, shape: list[int]
) -> None:
    x = torch.randn(5, *shape)
    model = MLP(x[0].numel(), 3, hidden, activation, dropout, batch_norm)
    assert model.val_step((x, torch.zeros(5, dtype=torch.long))).shape == (5, 3)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [*hidden, 3]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_mlp_starts_with_variances_that_keep_the_signal(batch_norm: bool) -> None:
    model = MLP(200, 100, [300, 300], batch_norm=batch_norm)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.05)
            assert layer.bias is None or (layer.bias == 0).all()


@pytest.mark.parametrize("size", [1, 2, 8, 28, 32])
def test_cnn_takes_any_image(size: int) -> None:
    assert CNN(3, 10, [4, 8, 8], dropout=0.1)(torch.randn(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("size", [4, 8, 28, 32])
def test_resnet_takes_small_images(size: int) -> None:
    assert ResNet(3, 10, depth=8, width=4)(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_resnet_20_has_the_parameters_of_the_paper() -> None:
    assert sum(p.numel() for p in ResNet(3, 10, depth=20).parameters()) == 269_722  # "0.27M" in its table 6


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_resnet_depth_counts_its_weight_layers(depth: int) -> None:
    model = ResNet(1, 10, depth=depth, width=2)
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == depth


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("tie", [True, False])
def test_transformer_shapes_and_loss(positions: str, tie: bool) -> None:
    model = Transformer(**TEXT, positions=positions, tie_embeddings=tie)
    tokens, target = torch.randint(11, (2, 3, 8)).unbind(0)
    logits = model.val_step((tokens, target))
    assert logits.shape == (3, 8, 11)
    loss = model.train_step((tokens, target))["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(logits.reshape(-1, 11), target.reshape(-1)))
    assert model(tokens[:, :5]).shape == (3, 5, 11)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_transformer_sees_no_token_after_its_own(positions: str) -> None:
    model = Transformer(**TEXT, positions=positions).double()
    tokens = torch.randint(11, (1, 8))
    other = tokens.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 11
    a, b = model(tokens), model(other)
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_transformer_knows_the_order_of_what_it_saw(positions: str) -> None:
    model = Transformer(**TEXT, positions=positions)
    for p in model.parameters():  # at its initial weights attention is so flat that order hardly shows
        nn.init.normal_(p, std=0.5)
    a, b = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(a[:, -1], b[:, -1], atol=1e-3)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    attention = Transformer(**TEXT, positions="rotary").net.blocks[0].attention
    q, k = torch.randn(2, 4).unbind(0)
    turned_q = attention.rotate(q.expand(1, 1, 8, 4))[0, 0]
    turned_k = attention.rotate(k.expand(1, 1, 8, 4))[0, 0]
    scores = turned_q @ turned_k.T
    for offset in range(-7, 8):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores[0, 0], q @ k)


def test_tied_embeddings_are_one_parameter() -> None:
    tied, free = Transformer(**TEXT), Transformer(**TEXT, tie_embeddings=False)
    assert len(list(free.parameters())) == len(list(tied.parameters())) + 1
    assert not any("head" in key for key in tied.state_dict())


def test_transformer_starts_as_gpt_2() -> None:
    model = Transformer(vocab_size=100, context_length=64, dim=128, heads=4, layers=8, positions="learned")
    for name, p in model.named_parameters():
        if name.endswith("out.weight"):
            assert p.std().item() == pytest.approx(0.02 / 4, rel=0.05), name
        elif p.ndim == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name
        elif "norm" in name and name.endswith("weight"):
            assert (p == 1).all(), name
        else:
            assert (p == 0).all(), name
    loss = model.train_step((torch.randint(100, (4, 64)), torch.randint(100, (4, 64))))["loss"]
    assert loss.item() == pytest.approx(torch.tensor(100.0).log().item(), rel=0.05)


def test_a_longer_sequence_than_the_context_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"context_length: 8 is invalid. Expected at least 9"):
        Transformer(**TEXT)(torch.zeros(1, 9, dtype=torch.long))


def test_rotary_under_autocast() -> None:
    model = Transformer(**TEXT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train_step((torch.randint(11, (2, 8)), torch.randint(11, (2, 8))))["loss"]
    loss.backward()
    assert torch.isfinite(loss)


BUILD: dict[str, Callable[[], BaseModel]] = {
    "mlp": lambda: MLP(64, 10, [8], dropout=0.1, batch_norm=True),
    "cnn": lambda: CNN(**IMAGE, channels=[4, 4], dropout=0.1),
    "resnet": lambda: ResNet(**IMAGE, depth=8, width=2),
    "transformer": lambda: Transformer(**TEXT, dropout=0.1),
    "supervised": lambda: Supervised(nn.Linear(3, 2)),
}


@pytest.mark.parametrize("name", BUILD)
def test_the_init_is_a_function_of_the_global_seed_and_forward_draws_nothing_in_eval(name: str) -> None:
    def built(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return BUILD[name]().state_dict()

    a, b, c = built(1), built(1), built(2)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("name", BUILD)
def test_checkpoints_hold_the_whole_model(name: str) -> None:
    model, twin = BUILD[name](), BUILD[name]()
    twin.load_state_dict(model.state_dict())
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    copy.deepcopy(model)


BAD: list[tuple[Callable[..., BaseModel], dict[str, Any], str, str]] = [
    (MLP, {"in_features": "auto", "num_classes": 2}, "in_features", "Give an integer"),
    (MLP, {"in_features": 0, "num_classes": 2}, "in_features", "at least 1"),
    (MLP, {"in_features": 2.5, "num_classes": 2}, "in_features", "an integer"),
    (MLP, {"in_features": True, "num_classes": 2}, "in_features", "an integer"),
    (MLP, {"in_features": 4, "num_classes": "auto"}, "num_classes", "Give an integer"),
    (MLP, {"in_features": 4, "num_classes": None}, "num_classes", "an integer"),
    (MLP, {"in_features": 4, "num_classes": 2, "hidden": [8, 0]}, "hidden", "at least 1"),
    (MLP, {"in_features": 4, "num_classes": 2, "hidden": 8}, "hidden", "list"),
    (MLP, {"in_features": 4, "num_classes": 2, "hidden": ["8"]}, "hidden", "integers"),
    (MLP, {"in_features": 4, "num_classes": 2, "dropout": 1.0}, "dropout", "below 1"),
    (MLP, {"in_features": 4, "num_classes": 2, "dropout": -0.1}, "dropout", "at least 0"),
    (MLP, {"in_features": 4, "num_classes": 2, "dropout": "0.5"}, "dropout", "number"),
    (MLP, {"in_features": 4, "num_classes": 2, "dropout": float("nan")}, "dropout", "number"),
    (MLP, {"in_features": 4, "num_classes": 2, "activation": "rellu"}, "activation", "Did you mean 'relu'?"),
    (MLP, {"in_features": 4, "num_classes": 2, "activation": None}, "activation", "relu"),
    (CNN, {"in_channels": "auto", "num_classes": 2}, "in_channels", "Give an integer"),
    (CNN, {**IMAGE, "num_classes": "auto"}, "num_classes", "Give an integer"),
    (CNN, {**IMAGE, "channels": []}, "channels", "at least 1 element."),
    (CNN, {**IMAGE, "channels": [4, -1]}, "channels", "at least 1"),
    (CNN, {**IMAGE, "dropout": 2}, "dropout", "below 1"),
    (ResNet, {"in_channels": "auto", "num_classes": 2}, "in_channels", "Give an integer"),
    (ResNet, {**IMAGE, "num_classes": 0}, "num_classes", "at least 1"),
    (ResNet, {**IMAGE, "width": 0}, "width", "at least 1"),
    (ResNet, {**IMAGE, "depth": 18}, "depth", "14 or 20"),
    (ResNet, {**IMAGE, "depth": 2}, "depth", "nearest: 8"),
    (ResNet, {**IMAGE, "depth": 1}, "depth", "nearest: 8"),
    (ResNet, {**IMAGE, "depth": 7}, "depth", "nearest: 8"),
    (ResNet, {**IMAGE, "depth": "deep"}, "depth", "an integer"),
    (Transformer, {**TEXT, "vocab_size": "auto"}, "vocab_size", "Give an integer"),
    (Transformer, {**TEXT, "context_length": "auto"}, "context_length", "Give an integer"),
    (Transformer, {**TEXT, "dim": 0}, "dim", "at least 1"),
    (Transformer, {**TEXT, "layers": 0}, "layers", "at least 1"),
    (Transformer, {**TEXT, "heads": 0}, "heads", "at least 1"),
    (Transformer, {**TEXT, "heads": 3}, "heads", "2 or 4"),
    (Transformer, {**TEXT, "heads": 16}, "heads", "even"),
    (Transformer, {**TEXT, "dim": 12, "heads": 5}, "heads", "an even integer, with dim=12; nearest: 3 or 6."),
    (
        Transformer,
        {**TEXT, "dim": 12, "heads": 5, "positions": "learned"},
        "heads",
        "dim, with dim=12; nearest: 4 or 6.",
    ),
    (Transformer, {**TEXT, "dim": 9, "heads": 3}, "dim", "an even number, because positions=rotary"),
    (Transformer, {**TEXT, "dropout": 1}, "dropout", "below 1"),
    (Transformer, {**TEXT, "positions": "rotery"}, "positions", "Did you mean 'rotary'?"),
]


@pytest.mark.parametrize(("model", "arguments", "key", "says"), BAD)
def test_bad_arguments_are_named(
    model: Callable[..., BaseModel], arguments: dict[str, Any], key: str, says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        model(**arguments)
    assert error.value.key == key
    assert says in str(error.value)
