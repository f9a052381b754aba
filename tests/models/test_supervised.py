"""Any network plus any loss."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.errors import ConfigError, TrainyardError
from trainyard.models import MLP, BaseModel, Supervised, has_mode_contract

# torch.compile and DDP import parts of torch that use what torch itself calls old.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Two(nn.Module):
    """Takes two inputs."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right


def test_modes() -> None:
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    net = nn.Linear(4, 3)
    model = Supervised(net)
    assert list(model.train_step((x, y))) == ["loss"]
    torch.testing.assert_close(model.train_step((x, y))["loss"], F.cross_entropy(net(x), y))
    torch.testing.assert_close(model.val_step((x, y)), net(x))
    torch.testing.assert_close(model(x), net(x))
    torch.testing.assert_close(model(x, mode="predict"), net(x))


def test_targets_that_are_ignored_are_not_counted() -> None:
    x, y = torch.randn(6, 4), torch.tensor([0, -100, 2, 1, -100, 0])
    losses = Supervised(nn.Linear(4, 3), ignore_index=-100).train_step((x, y))
    assert losses["num_items"] == 4
    y[y == -100] = 1
    model = Supervised(nn.Linear(4, 3), ignore_index=1)
    kept = y != 1
    losses = model.train_step((x, y))
    assert losses["num_items"] == kept.sum()
    torch.testing.assert_close(losses["loss"], nn.functional.cross_entropy(model.net(x[kept]), y[kept]))
    with pytest.raises(
        ConfigError, match=r"ignore_index: 1 is invalid. Expected -100, which is the ignore_index of the loss"
    ):
        Supervised(nn.Linear(4, 3), nn.CrossEntropyLoss(), ignore_index=1)
    with pytest.raises(ConfigError, match="ignore_index"):
        Supervised(nn.Linear(4, 3), ignore_index="padding")


@pytest.mark.parametrize("names", [("x", "y"), ("image", "label"), ("input", "target"), ("pixel_values", "labels")])
def test_the_one_input_of_a_mapping_may_have_any_name(names: tuple[str, str]) -> None:
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    model = Supervised(nn.Linear(4, 3))
    batch = dict(zip(names, (x, y), strict=True))
    torch.testing.assert_close(model.train_step(batch), model.train_step((x, y)))
    torch.testing.assert_close(model.val_step(batch), model.val_step((x, y)))
    torch.testing.assert_close(model.val_step({names[0]: x}), model(x))


def test_several_inputs() -> None:
    a, b, y = torch.randn(3, 2), torch.randn(3, 2), torch.randn(3, 2)
    model = Supervised(Two(), F.mse_loss)
    want = F.mse_loss(a - b, y)
    assert model.train_step((a, b, y))["loss"] == want
    assert model.train_step({"right": b, "targets": y, "left": a})["loss"] == want


@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, lambda output, target: (output - target).square().mean()])
def test_any_loss(loss: Any) -> None:
    x, y = torch.randn(5, 2), torch.randn(5)
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    torch.testing.assert_close(Supervised(net, loss).train_step((x, y))["loss"], (net(x) - y).square().mean())


def test_a_built_in_network_can_be_the_net_of_a_regression() -> None:
    model = Supervised(MLP(in_features=2, num_classes=1), nn.MSELoss())
    assert model.val_step((torch.randn(5, 2), torch.randn(5, 1))).shape == (5, 1)
    assert model.train_step((torch.randn(5, 2), torch.randn(5, 1)))["loss"].ndim == 0


def test_the_weights_of_a_loss_move_with_the_model() -> None:
    model = Supervised(nn.Linear(2, 3), nn.CrossEntropyLoss(weight=torch.ones(3)))
    assert model.to("meta").loss.weight.device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        (torch.ones(2, 4), "consists of a single Tensor"),
        ((torch.ones(2, 4),), "consists of a single Tensor"),
        ({"x": torch.ones(2, 4)}, "is a mapping with the key x"),
    ],
)
def test_a_loss_needs_a_target(batch: Any, what: str) -> None:
    with pytest.raises(TrainyardError, match=f"no target: it {what}"):
        Supervised(nn.Linear(4, 3)).train_step(batch)


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ConfigError, match="predict"):
        Supervised(nn.Linear(4, 3))(torch.ones(2, 4), mode="predikt")


def test_wrong_parts_are_named() -> None:
    with pytest.raises(ConfigError) as error:
        Supervised("torch.nn.Linear")
    assert error.value.key == "net"
    with pytest.raises(ConfigError) as error:
        Supervised(nn.Linear(1, 1), "mse")
    assert error.value.key == "loss"


# --- has_mode_contract


class KeywordOnly(nn.Module):
    def forward(self, x: Tensor, *, mode: str) -> Tensor:
        return x


class Swallows(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args


class Decorated(nn.Module):
    @staticmethod
    def same(function: Any) -> Any:
        @wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return inner

    @same
    def forward(self, x: Tensor, mode: str = "tensor") -> Tensor:
        return x


@pytest.mark.parametrize("model", [BaseModel(), Supervised(nn.Linear(1, 1)), KeywordOnly(), Decorated()])
def test_models_that_keep_the_contract(model: nn.Module) -> None:
    assert has_mode_contract(model)


@pytest.mark.parametrize(
    "model", [nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1)), nn.EmbeddingBag(2, 2), Two(), Swallows()]
)
def test_plain_modules_do_not(model: nn.Module) -> None:
    assert not has_mode_contract(model)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch.jit.script is not there")
def test_a_scripted_module_does_not() -> None:
    assert not has_mode_contract(torch.jit.script(nn.Linear(1, 1)))


def test_compiled_models_are_judged_by_what_they_wrap() -> None:
    assert has_mode_contract(torch.compile(Supervised(nn.Linear(1, 1))))
    assert not has_mode_contract(torch.compile(nn.Linear(1, 1)))


def test_ddp_is_judged_by_what_it_wraps(tmp_path: Any) -> None:
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrap = nn.parallel.DistributedDataParallel
        assert has_mode_contract(wrap(Supervised(nn.Linear(1, 1))))
        assert not has_mode_contract(wrap(nn.Linear(1, 1)))
    finally:
        torch.distributed.destroy_process_group()
