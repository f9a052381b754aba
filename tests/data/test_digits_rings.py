"""The two data sets that need no file of the user's."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainyard.data import Digits, Rings
from trainyard.errors import ConfigError

CPU = torch.device("cpu")


def everything(data: Any) -> Any:
    batches = [batch for split in data.splits for batch in data.loader(split, seed=0, device=CPU).batches()]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_digits_holds_the_1797_images() -> None:
    data = Digits()
    x, y = everything(data)
    assert (x.shape, x.dtype) == ((1797, 1, 8, 8), torch.float32)
    assert y.dtype == torch.int64
    assert torch.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)
    assert torch.equal(x * 16, (x * 16).round())
    assert len(torch.unique(x.flatten(1), dim=0)) == 1797
    assert data.spec == {
        "input_shape": [1, 8, 8],
        "in_features": 64,
        "in_channels": 1,
        "image_size": 8,
        "num_classes": 10,
    }


def test_digits_agrees_with_scikit_learn() -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = everything(Digits(val_fraction=0, test_fraction=0.5))
    ours = {(tuple(image), label) for image, label in zip((x * 16).int().flatten(1).tolist(), y.tolist(), strict=True)}
    theirs = {(tuple(i), t) for i, t in zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True)}
    assert ours == theirs


def test_digits_splits_are_stratified_and_do_not_follow_the_run() -> None:
    data = Digits(val_fraction=0.1, test_fraction=0.2)
    lengths = {split: len(data.sources[split][1]) for split in data.splits}
    assert lengths == {"train": 1258, "val": 180, "test": 359}
    for split, length in lengths.items():
        counts = torch.bincount(data.sources[split][1], minlength=10) / length
        assert (counts - 0.1).abs().max() < 0.02
    one, two = ([y for _, y in data.loader("val", seed=seed, device=CPU).batches()] for seed in (0, 1))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(Digits(split_seed=1).sources["val"][1], data.sources["val"][1])


def test_a_fraction_of_nought_leaves_the_split_out() -> None:
    assert Digits(val_fraction=0).splits == ("train", "test")
    assert Digits(val_fraction=0, test_fraction=0).splits == ("train",)


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # where nothing is installed
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        Digits()


def test_rings_are_two_rings() -> None:
    data = Rings(num_samples=500, noise=0.0)
    x, y = everything(data)
    assert (x.shape, x.dtype, y.dtype) == ((500, 2), torch.float32, torch.int64)
    assert torch.bincount(y).tolist() == [250, 250]
    assert torch.allclose(x.norm(dim=1), 0.5 + 0.5 * y)
    assert x.mean(0).abs().max() < 0.1  # all the way round
    assert data.spec == {"input_shape": [2], "in_features": 2, "num_classes": 2}
    assert data.splits == ("train", "val", "test")


def test_noise_spreads_the_rings() -> None:
    x, y = everything(Rings(num_samples=4000, noise=0.1))
    off = x.norm(dim=1) - (0.5 + 0.5 * y)
    assert 0.08 < off.std().item() < 0.12


def test_the_points_follow_data_seed() -> None:
    one, same, other = (everything(Rings(100, data_seed=seed))[0].numpy() for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_samples", 0), ("num_samples", 10.0), ("noise", -1), ("noise", "0.1"), ("data_seed", -1), ("batch_size", 0)],
)
def test_bad_options_of_rings_are_refused(option: str, value: float | str) -> None:
    with pytest.raises(ConfigError) as caught:
        Rings(**{option: value})
    assert caught.value.key == option


def test_thousands_of_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"workers: 1000000 is invalid. Expected an integer from 0 to 256"):
        Rings(num_samples=60, workers=10**6)
