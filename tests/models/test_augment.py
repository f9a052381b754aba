"""Augmentation on the device: what it does to batches, and that a run with it resumes and is not stacked."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from data_runs import resumes_to_the_bits, training
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.schema import check
from trainyard.errors import ConfigError, TrainyardError, Unfusable
from trainyard.fused.runner import FusedRunner
from trainyard.models import Augment, augment
from trainyard.models.base import uncapturable

CONF = str(Path(__file__).parents[2] / "conf")
V2 = "torchvision.transforms.v2"


class Brighter:
    """A transform that draws one number."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.rand(())


def cnn(*transforms: Any) -> dict[str, Any]:
    own = {"_target_": "trainyard.models.Augment", "transforms": list(transforms)}
    name = "trainyard.models.CNN"
    return {
        "_target_": name,
        "in_channels": "auto",
        "num_classes": "auto",
        "channels": [4, 8],
        "data_preprocessor": own,
    }


DIGITS = {"_target_": "trainyard.data.Digits", "batch_size": 128}


def test_the_example_in_the_docstring_runs() -> None:
    result = doctest.testmod(augment)
    assert (result.attempted > 1, result.failed) == (True, 0)


@pytest.mark.parametrize("each", [True, False])
def test_samples_have_their_own_random_numbers_or_those_of_the_batch(each: bool) -> None:
    own = Augment(Brighter(), each=each)
    x, y = own((torch.zeros(6, 1, 2, 2), torch.arange(6)))
    assert torch.equal(y, torch.arange(6))
    assert len(x.unique()) == (6 if each else 1)
    assert all(len(sample.unique()) == 1 for sample in x)


def test_batches_of_every_form_and_of_the_evaluation() -> None:
    own, x = Augment([torch.neg, torch.exp]), torch.ones(2, 1, 2, 2)
    for made in (own([x, 3])[0], own({"label": 3, "image": x})["image"], own(x)):
        assert torch.equal(made, torch.full_like(x, -1).exp())
    assert own({"label": 3}) == {"label": 3}
    batch = (x, 3)
    assert own.eval()(batch) is batch


def test_what_cannot_augment() -> None:
    with pytest.raises(ConfigError, match=V2) as caught:
        Augment(["flip"])
    assert caught.value.key == "transforms"
    sizes = iter((3, 4))
    with pytest.raises(TrainyardError, match=r"\[1, 3\] and \[1, 4\]"):
        Augment(lambda x: x[:, : next(sizes)])(torch.zeros(2, 1, 8))


def test_parts_that_hold_tensors_move_with_the_model() -> None:
    assert "parts.0.running_mean" in Augment([nn.BatchNorm2d(3), torch.neg]).state_dict()


def test_the_option_of_the_configs() -> None:
    target = "model.data_preprocessor.transforms=[{_target_: torch.nn.Identity}]"
    with initialize_config_dir(CONF, **VERSION_BASE):
        cfg = compose(
            "train", overrides=["model=cnn", "+model/data_preprocessor=augment", target, "work_dir=x", "tracker=none"]
        )
    check(cfg)
    assert cfg.model.data_preprocessor.each is True


def test_a_run_resumes_to_the_bits(tmp_path: Path) -> None:
    resumes_to_the_bits(training(DIGITS, cnn({"_target_": Brighter})), tmp_path, 15)


def test_runs_are_not_stacked() -> None:
    values = training(DIGITS, cnn({"_target_": Brighter}))
    with pytest.raises(Unfusable, match="a step of Augment reads or changes Python state"):
        FusedRunner([values | {"seed": seed} for seed in range(2)]).train()


def test_a_model_is_capturable_if_its_parts_are() -> None:
    assert uncapturable(nn.Sequential(nn.Linear(2, 2))) is None
    assert uncapturable(nn.Sequential(nn.Linear(2, 2), Augment(torch.neg))) == "Augment"


def test_transforms_of_torchvision(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", exc_type=ImportError)
    crop, flip = {"_target_": f"{V2}.RandomResizedCrop", "size": 8}, {"_target_": f"{V2}.RandomHorizontalFlip"}
    resumes_to_the_bits(training(DIGITS, cnn(crop, flip)), tmp_path, 15)
