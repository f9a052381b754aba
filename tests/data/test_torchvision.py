"""Image sets by name. The conversion is tested on small classes with torchvision's interface, written to a module."""

import importlib.util
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.data import Torchvision
from trainyard.errors import ConfigError

CPU = torch.device("cpu")
MODULE = """
import urllib.error
import numpy as np, torch
from PIL import Image

def images(train):
    return np.random.default_rng(train).integers(0, 256, (60 if train else 20, 6, 6, 3), dtype=np.uint8)

def targets(train):
    return [index % 5 for index in range(60 if train else 20)]

class Colour:                       # as CIFAR10: [N, H, W, C] and a list
    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        if root.endswith("offline") and download:
            raise urllib.error.URLError("Name or service not known")
        if root.endswith("absent") and not download:
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it.")
        self.root, self.transform, self.data, self.targets = root, transform, images(train), targets(train)
    def __len__(self): return len(self.data)

class Grey(Colour):                 # as MNIST: tensors, [N, H, W]
    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        super().__init__(root, train, transform, target_transform, download)
        self.data, self.targets = torch.from_numpy(self.data[..., 0].copy()), torch.tensor(self.targets)

class Channels(Colour):             # as SVHN: [N, C, H, W], labels, split
    def __init__(self, root, split="train", transform=None, download=False):
        super().__init__(root, split == "train", transform, download=download)
        self.data = self.data.transpose(0, 3, 1, 2)
        self.labels = np.array(self.targets) * 2 + 1
        del self.targets

class Files:                        # as Food101: one image at a time
    classes = ["a", "b", "c", "d", "e"]
    def __init__(self, root, split="train", transform=None, download=False):
        self.images, self.labels_ = images(split == "train"), targets(split == "train")
    def __len__(self): return len(self.images)
    def __getitem__(self, index): return Image.fromarray(self.images[index]), self.labels_[index]

class GreyFiles(Files):
    def __getitem__(self, index): return Image.fromarray(self.images[index, :, :, 0]), self.labels_[index]

class Unsplit:
    def __init__(self, root, transform=None): pass

class Val(Files):                   # as ImageNet: split is train or val
    def __init__(self, root, split="train"):
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value {split!r} for argument split. Valid values are {{'train', 'val'}}.")
        super().__init__(root, split)

class Needing(Files):               # as SVHN, which needs scipy
    def __init__(self, root, split="train"):
        import no_such_package

class Unlabelled(Files):
    classes = None
"""


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "small_sets.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "small_sets", raising=False)
    importlib.invalidate_caches()
    yield importlib.import_module("small_sets")
    sys.modules.pop("small_sets", None)


def served(data: Any, split: Any) -> Any:
    batches = list(data.loader(split, seed=0, device=CPU).batches())
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("name", ["Colour", "Channels"])
def test_resident_colour_images(sets: Any, name: str) -> None:
    data = Torchvision(f"small_sets.{name}", val_fraction=0.2)
    assert {split: len(data.sources[split][0]) for split in data.splits} == {"train": 48, "val": 12, "test": 20}
    assert data.sources["train"][0].dtype == torch.uint8  # bytes in memory
    x, y = served(data, "test")
    assert torch.equal(x, torch.from_numpy(sets.images(False)).permute(0, 3, 1, 2) / 255)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.tolist() == sets.targets(False)
    assert data.spec == {
        "input_shape": [3, 6, 6],
        "in_features": 108,
        "in_channels": 3,
        "image_size": 6,
        "num_classes": 5,
    }


def test_resident_grey_images(sets: Any) -> None:
    data = Torchvision("small_sets.Grey")
    assert data.spec["input_shape"] == [1, 6, 6]
    assert torch.equal(served(data, "test")[0][:, 0], torch.from_numpy(sets.images(False)[..., 0]) / 255)


def test_validation_comes_from_the_training_part_by_class(sets: Any) -> None:
    data = Torchvision("small_sets.Colour", val_fraction=0.25)
    assert torch.bincount(data.sources["val"][1]).tolist() == [3] * 5
    both = torch.cat([data.sources["train"][0], data.sources["val"][0]]).flatten(1).tolist()
    assert sorted(both) == sorted(sets.images(True).transpose(0, 3, 1, 2).reshape(60, -1).tolist())
    assert Torchvision("small_sets.Colour", val_fraction=0).splits == ("train", "test")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_from_files_go_through_a_dataloader(sets: Any, workers: int) -> None:
    data = Torchvision("small_sets.Files", val_fraction=0.2, batch_size=16, workers=workers)
    x, y = served(data, "test")
    assert torch.equal(x, torch.from_numpy(sets.images(False)).permute(0, 3, 1, 2) / 255)
    assert y.tolist() == sets.targets(False)
    x, y = served(data, "train")
    assert (x.shape, x.dtype, y.dtype) == ((48, 3, 6, 6), torch.float32, torch.int64)
    assert data.spec["num_classes"] == 5


def test_images_from_files_can_be_resized(sets: Any) -> None:
    data = Torchvision("small_sets.GreyFiles", image_size=4)
    assert data.spec["input_shape"] == [1, 4, 4]
    assert served(data, "val")[0].shape == (6, 1, 4, 4)


@pytest.mark.parametrize(
    ("key", "match", "options"),
    [
        ("name", "Did you mean 'small_sets.Colour'", {"name": "small_sets.Color"}),
        ("name", "No module named", {"name": "no_such_module.Set"}),
        ("name", "training and a test part", {"name": "small_sets.Unsplit"}),
        ("name", "lists its classes", {"name": "small_sets.Unlabelled"}),
        ("root", r"data\.download=true", {"root": "absent"}),
        ("root", "to which they can be downloaded. .* failed: .*Name or", {"root": "offline", "download": True}),
        ("name", "Unknown value 'test' .* 'val'}.$", {"name": "small_sets.Val"}),
        ("name", "packages are installed. No module named 'no_such_package'.$", {"name": "small_sets.Needing"}),
        ("image_size", "fixed size", {"image_size": 8}),
        ("image_size", "an integer", {"image_size": 0}),
        ("val_fraction", "fraction", {"val_fraction": 1}),
        ("download", "true or false", {"download": "no"}),
        ("batch_size", "an integer", {"batch_size": 0}),
    ],
)
def test_what_cannot_work(sets: Any, key: str, match: str, options: Any) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        Torchvision(**{"name": "small_sets.Colour", **options})
    assert caught.value.key == key


def test_a_name_is_a_string_in_any_case(sets: Any) -> None:
    with pytest.raises(ConfigError, match=r"^name: 3 is invalid. Expected the name of a class of torchvision.datasets"):
        Torchvision(3)
    with pytest.raises(ConfigError, match=r"Did you mean 'small_sets\.GreyFiles'"):
        Torchvision("small_sets.GREYFILES")


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_torchvision_it_says_what_to_install() -> None:
    with pytest.raises(
        ConfigError, match=r"torchvision is missing\. Install it with: pip install 'trainyard\[vision\]'"
    ):
        Torchvision("CIFAR10")


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_wrong_name_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'CIFAR10'"):
        Torchvision("CIFAR-10")


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_files_of_torchvision_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.download=true"):
        Torchvision("MNIST", root=str(tmp_path))
