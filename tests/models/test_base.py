"""The model contract."""

from __future__ import annotations

import copy
import doctest
import importlib
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainyard.errors import ConfigError, TrainyardError
from trainyard.models import BaseModel, DataPreprocessor, call, total_loss


class Recorder(BaseModel):
    """Says how it was called."""

    def __init__(self, data_preprocessor: nn.Module | None = None) -> None:
        super().__init__(data_preprocessor)
        self.inner = nn.Sequential(nn.ReLU(), nn.Linear(2, 1))

    def forward(self, *args: Any, mode: str = "tensor", **kwargs: Any) -> Any:
        return {"loss": torch.ones(())} if mode == "loss" else (args, kwargs, mode)


class Plain(nn.Module):
    """Keeps the contract without the base class."""

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        return (x, y, mode)


@pytest.mark.parametrize("module", ["base", "preprocessor", "supervised"])
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"trainyard.models.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_call_passes_a_batch_by_its_kind() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    model = Plain()
    assert call(model, (x, y), "loss") == (x, y, "loss")
    assert call(model, [x, y], "predict") == (x, y, "predict")
    assert call(model, {"y": y, "x": x}, "tensor") == (x, y, "tensor")
    assert call(model, x, "tensor") == (x, None, "tensor")


def test_steps_use_their_modes() -> None:
    batch = (torch.ones(3, 2), torch.ones(3))
    model = Recorder()
    assert list(model.train_step(batch)) == ["loss"]
    assert model.val_step(batch)[2] == "predict"
    assert model.test_step(batch)[2] == "predict"


def test_forward_must_be_written() -> None:
    class Forgot(BaseModel):
        pass

    with pytest.raises(NotImplementedError, match="Forgot"):
        Forgot().val_step(torch.ones(1))


def test_batches_move_to_the_device_of_the_parameters_wherever_it_goes() -> None:
    batch = (torch.ones(3, 2), {"y": torch.ones(3)})
    model = Recorder()
    assert model.preprocess(batch)[0] is batch[0]
    model.to("meta")
    moved = model.preprocess(batch)
    assert moved[0].device.type == moved[1]["y"].device.type == "meta"
    model.to_empty(device="cpu")
    assert model.preprocess(batch)[0].device.type == "cpu"


def test_the_device_is_that_of_the_parameters_that_functional_call_puts_in() -> None:
    class Step(nn.Module):
        def __init__(self, model: BaseModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Any) -> Any:
            return self.model.val_step(batch)

    step = Step(Recorder().to("meta"))
    assert step((torch.ones(3, 2),))[0][0].device.type == "meta"
    real = {name: torch.zeros_like(p, device="cpu") for name, p in step.named_parameters()}
    assert functional_call(step, real, ((torch.ones(3, 2),),))[0][0].device.type == "cpu"


def test_a_model_without_parameters_leaves_the_batch_where_it_is() -> None:
    class Empty(BaseModel):
        def forward(self, x: Tensor, mode: str = "tensor") -> Tensor:
            return x

    x = torch.ones(1)
    assert Empty().val_step(x) is x


def test_the_device_is_found_again_when_layers_change() -> None:
    model = Recorder()
    model.preprocess(torch.ones(1))
    torch.nn.utils.parametrizations.weight_norm(model.inner[1])
    model.inner[1].bias = None  # type: ignore[assignment]
    assert model.preprocess(torch.ones(1)).device.type == "cpu"
    model.inner = nn.Sequential(nn.Linear(1, 1))
    model.to("meta")
    assert model.inner[0].weight.device.type == "meta"


def test_copies_and_pickles_look_at_their_own_parameters() -> None:
    model = Recorder()
    model.preprocess(torch.ones(1))
    twin = copy.deepcopy(model).to("meta")
    assert twin.preprocess(torch.ones(1)).device.type == "meta"
    assert model.preprocess(torch.ones(1)).device.type == "cpu"
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False).to("meta")
    assert loaded.preprocess(torch.ones(1)).device.type == "meta"


# --- total_loss


def test_total_loss_sums_what_is_called_loss() -> None:
    losses = {"loss_cls": torch.tensor(1.0), "box_loss": [torch.tensor(2.0), torch.tensor(3.0)], "acc": torch.tensor(9)}
    assert total_loss(losses) == 6
    assert total_loss({"loss": torch.tensor(1.0), "loss_reg": 0.5}) == 1.5


def test_total_loss_of_one_entry_is_that_entry() -> None:
    loss = torch.tensor(1.0, requires_grad=True)
    assert total_loss({"loss": loss}) is loss


def test_total_loss_keeps_members_apart() -> None:
    assert total_loss({"loss_a": torch.ones(3), "loss_b": torch.ones(3)}, stacked=True).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ({"nll": torch.ones(())}, "no loss"),
        ({}, "no loss"),
        ({"loss": 1.0}, "'loss' of type float, but a loss must be a tensor"),
        ({"loss": 1}, "'loss' of type int, but a loss must be a tensor"),
        ({"loss": []}, "'loss' of type list, but a loss must be a tensor, or a list of at least one tensor"),
    ],
)
def test_no_loss_names_the_keys(losses: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainyardError, match=told) as error:
        total_loss(losses)
    assert all(repr(key) in str(error.value) for key in losses)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (
            {"loss": torch.ones(()), "loss_aux": None},
            "returned 'loss_aux' of type NoneType, but a loss must be a tensor",
        ),
        (
            {"loss_aux": None, "loss": torch.ones(())},
            "returned 'loss_aux' of type NoneType, but a loss must be a tensor",
        ),
        ({0: torch.ones(())}, "returned the key 0 in the losses of a batch. Expected strings"),
        (
            {"loss": [torch.ones(()), None]},
            "returned an element of 'loss' of type NoneType, but a loss must be a tensor",
        ),
    ],
)
def test_what_is_no_loss_is_named(losses: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainyardError, match=told):
        total_loss(losses)


def test_a_bare_tensor_is_no_dict_of_losses() -> None:
    with pytest.raises(TrainyardError, match="returned losses of type Tensor, but"):
        total_loss(torch.ones(()))


# --- DataPreprocessor


def test_the_input_is_normalised_and_nothing_else() -> None:
    x = torch.rand(4, 3, 2, 2)
    y = torch.arange(4)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    want = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    pre = DataPreprocessor(mean, std)
    out = pre((x, y))
    torch.testing.assert_close(out[0], want)
    assert out[1] is y
    torch.testing.assert_close(pre(x), want)
    named = pre({"label": y, "image": x, "mask": x})
    torch.testing.assert_close(named["image"], want)
    assert named["label"] is y
    assert named["mask"] is x
    assert list(named) == ["label", "image", "mask"]
    assert pre({"label": y}) == {"label": y}


def test_features_are_normalised_by_column() -> None:
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    assert DataPreprocessor([2, 20], [1, 10])(x).tolist() == [[-1, -1], [1, 1]]


def test_bytes_become_floats() -> None:
    x = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert DataPreprocessor(0, 255)(x).tolist() == [[0, 1]]


def test_it_is_applied_in_every_step() -> None:
    model = Recorder(DataPreprocessor(1.0, 2.0))
    (x, _), _, _ = model.val_step((torch.full((3, 2), 5.0), torch.ones(3)))
    assert x.tolist() == [[2, 2]] * 3
    model.to("meta")
    assert model.val_step((torch.ones(3, 2), torch.ones(3)))[0][0].device.type == "meta"
    assert not any("data_preprocessor" in key for key in model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"mean": "auto"}, "mean"),
        ({"mean": []}, "mean"),
        ({"mean": [True]}, "mean"),
        ({"std": 0}, "std"),
        ({"std": [1.0, -1.0]}, "std"),
        ({"mean": [1, 2, 3], "std": [1, 2]}, "std"),
    ],
)
def test_wrong_numbers_are_refused(arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        DataPreprocessor(**arguments)
    assert error.value.key == key


def test_an_option_of_the_preprocessor_is_selected_with_a_slash() -> None:
    with pytest.raises(ConfigError, match=r"use for example \+model/data_preprocessor=normalize\."):
        Recorder("my_module.Scale")
