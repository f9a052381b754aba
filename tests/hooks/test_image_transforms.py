from typing import Any

import pytest
import torch

from trainyard.errors import ConfigError
from trainyard.hooks.image_transforms import CenterCrop, Flip, Shift

X = torch.tensor([[[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]])


def test_flips() -> None:
    assert Flip()(X)[0, 0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
    assert Flip(horizontal=False, vertical=True)(X)[0, 0].tolist() == [[6, 7, 8], [3, 4, 5], [0, 1, 2]]
    assert Flip(vertical=True)(X)[0, 0].tolist() == [[8, 7, 6], [5, 4, 3], [2, 1, 0]]


def test_shifts_repeat_the_edge() -> None:
    assert Shift(x=1)(X)[0, 0].tolist() == [[0, 0, 1], [3, 3, 4], [6, 6, 7]]
    assert Shift(x=-2)(X)[0, 0].tolist() == [[2, 2, 2], [5, 5, 5], [8, 8, 8]]
    assert Shift(y=1)(X)[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert Shift(x=1, y=-1)(X)[0, 0].tolist() == [[3, 3, 4], [6, 6, 7], [6, 6, 7]]
    assert Shift(x=9)(X)[0, 0].tolist() == [[0, 0, 0], [3, 3, 3], [6, 6, 6]]


def test_a_crop_is_the_middle_enlarged() -> None:
    images = torch.zeros(2, 3, 8, 6)
    images[:, :, 2:6, 2:4] = 1.0  # 4 of 8, and 2 of 6, in the middle
    cropped = CenterCrop(0.5)(images)
    assert cropped.shape == images.shape
    assert torch.equal(cropped[..., 1], torch.full((2, 3, 8), cropped[0, 0, 0, 1].item())), "all rows are inside"
    assert cropped.mean() > images.mean()
    assert torch.equal(CenterCrop(0.75)(torch.full((1, 1, 9, 9), 0.25)), torch.full((1, 1, 9, 9), 0.25))


@pytest.mark.parametrize("transform", [Flip(), Shift(x=1, y=2), CenterCrop()])
def test_the_type_of_the_numbers_stays(transform: Any) -> None:
    for dtype in (torch.uint8, torch.float32, torch.float64):
        images = (torch.rand(2, 3, 8, 8) * 255).to(dtype)
        assert transform(images).dtype == dtype
        assert transform(images).shape == images.shape


@pytest.mark.parametrize("inputs", [torch.zeros(4, 2), torch.zeros(3, 8, 8), "image"])
def test_what_is_no_image_is_refused(inputs: Any) -> None:
    with pytest.raises(ConfigError, match=r"needs images \[B, C, H, W\]"):
        Flip()(inputs)


def test_settings_that_cannot_be() -> None:
    for call, key in (
        (lambda: Shift(x=0.5), "x"),
        (lambda: CenterCrop(1.0), "share"),
        (lambda: CenterCrop(0), "share"),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert error.value.key == key
