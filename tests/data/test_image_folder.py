"""Images in files: folders of classes and tables of paths."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_runs import resumes_to_the_bits, stack_follows_members, trained, training
from PIL import Image
from sklearn.datasets import load_digits

from trainyard.config.build import check_tree
from trainyard.data import ImageFolder
from trainyard.errors import ConfigError, TrainyardError
from trainyard.fused.loader import stack_loader

CPU = torch.device("cpu")
MODEL = {
    "_target_": "trainyard.models.MLP",
    "in_features": "auto",
    "num_classes": "auto",
    "hidden": [16],
    "loss": "auto",
}
METRICS = {"accuracy": {"_target_": "trainyard.metrics.Accuracy"}}


class Noise:
    """A transform that draws random numbers."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image.float() / 255 + 0.1 * torch.rand(image.shape)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of three classes of scikit-learn's digits: root/<class>/<number>.png."""
    root = tmp_path_factory.mktemp("digits")
    found = load_digits()
    for index in np.flatnonzero(found.target < 3)[:120]:
        folder = root / ("zero", "one", "two")[found.target[index]]
        folder.mkdir(exist_ok=True)
        pixels = (found.images[index] * 15).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (root / "one" / "notes.txt").write_text("no image")
    return root


def rows(data: ImageFolder) -> dict[str, int]:
    sources: dict[str, Any] = data.sources
    return {split: len(source) for split, source in sources.items()}


def table(root: Path, **columns: Any) -> pd.DataFrame:
    files = sorted(str(file.relative_to(root)) for file in root.rglob("*.png"))
    frame = pd.DataFrame({"path": files, "label": [Path(file).parent.name for file in files]})
    return frame.assign(**columns)


def test_a_folder_for_each_class(digits: Path) -> None:
    data = ImageFolder(str(digits), colour="grey", test_fraction=0.2)
    assert data.classes == ["one", "two", "zero"]
    assert data.spec == {
        "input_shape": [1, 8, 8],
        "in_features": 64,
        "in_channels": 1,
        "image_size": 8,
        "num_classes": 3,
    }
    assert rows(data) == {"train": 84, "val": 12, "test": 24}
    x, y = next(data.loader("test", seed=0, device=CPU).batches())
    assert (x.shape, x.dtype, y.dtype) == ((24, 1, 8, 8), torch.float32, torch.int64)
    assert 0.5 < x.max() <= 1
    assert ImageFolder(str(digits)).spec["in_channels"] == 3


def test_memory_serves_what_files_serve(digits: Path) -> None:
    files = ImageFolder(str(digits), image_size=12, batch_size=16)
    memory = ImageFolder(str(digits), image_size=12, batch_size=16, in_memory=True)
    assert memory.sources["train"][0].dtype == torch.uint8
    for split in files.splits:
        batches = [list(data.loader(split, seed=3, device=CPU).batches(1)) for data in (files, memory)]
        for one, other in zip(*batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_samples_stacked(digits: Path, workers: int) -> None:
    own = ImageFolder(str(digits), batch_size=16, workers=workers)
    images: Any = own.sources["train"]
    loader: Any = own.loader("train", seed=3, device=CPU)
    order, first = loader.order(1), 0
    for x, y in loader.batches(1):
        samples = [images[index] for index in order[first : first + 16]]
        assert torch.equal(x, torch.stack([image for image, _ in samples]))
        assert torch.equal(y, torch.stack([label for _, label in samples]))
        first += 16
    assert x.dtype == torch.float32


def test_members_of_other_seeds_have_the_batches_of_their_single_runs(digits: Path) -> None:
    data = ImageFolder(str(digits), batch_size=16, workers=2)
    solos = [data.loader("train", seed=seed, device=CPU) for seed in (0, 1)]
    stacked = stack_loader(data.loader("train", seed=0, device=CPU), [0, 1])
    for batch, *wanted in zip(stacked.batches(1), *(each.batches(1) for each in solos), strict=True):
        assert batch[0].dtype == torch.float32
        assert all(torch.equal(mine[k], its) for k in (0, 1) for mine, its in zip(batch, wanted[k], strict=True))


def test_floats_of_a_transform_are_served_as_they_are(digits: Path) -> None:
    own = ImageFolder(str(digits), eval_transform=[lambda image: image.double() - 300])
    x, _ = next(own.loader("val", seed=0, device=CPU).batches())
    assert x.dtype == torch.float64
    assert x.max() < 0


def test_folders_for_the_splits(digits: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(digits)
    data = ImageFolder(str(tmp_path), test_fraction=0.1)
    assert rows(data) == {"train": 108, "val": 120, "test": 12}
    assert rows(ImageFolder(str(digits), val_path=str(digits)))["val"] == 120


@pytest.mark.parametrize("names", [("train", "val", "test"), ("train",), ("val", "test"), ("train", "extra", "valid")])
def test_a_separate_path_is_no_folder_of_splits(digits: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).symlink_to(digits)
    own = f"{tmp_path}/val" if "val" in names else "the path of the folder of one split"
    refused(
        "val_path",
        f"without splits. It contains .*/.* Set data.val_path to {own}",
        str(digits),
        val_path=str(tmp_path),
    )


def test_a_class_of_a_separate_path_is_named_train(digits: Path, tmp_path: Path) -> None:
    for part in ("first", "second"):
        (tmp_path / part).mkdir()
        for name, kind in (("train", "zero"), ("car", "one")):
            (tmp_path / part / name).symlink_to(digits / kind)
    data = ImageFolder(str(tmp_path / "first"), val_path=str(tmp_path / "second"))
    assert data.classes == ["car", "train"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("train", "val", "extra"), "no other folder. It contains extra/. Rename"),
        (("train", "validation"), "It contains validation/"),
        (("Train", "Test"), "It contains Test/, Train/"),
        (("val", "test"), "It has no train/"),
    ],
)
def test_folders_beside_the_splits_are_no_classes(digits: Path, tmp_path: Path, names: Any, told: str) -> None:
    for name in names:
        (tmp_path / name).symlink_to(digits)
    refused("path", told, str(tmp_path))


def test_a_class_can_have_the_name_of_a_split(digits: Path, tmp_path: Path) -> None:
    for name, folder in (("train", "zero"), ("bus", "one")):
        (tmp_path / name).symlink_to(digits / folder)
    assert ImageFolder(str(tmp_path)).classes == ["bus", "train"]


def test_a_table_of_paths(digits: Path) -> None:
    frame = table(digits, patient=np.arange(120) // 10, size=np.linspace(0, 1, 120))
    frame.to_csv(digits / "table.csv", index=False)
    data = ImageFolder(str(digits / "table.csv"), group="patient", folds=3, fold=1)
    assert data.classes == ["one", "two", "zero"]
    assert sum(rows(data).values()) == 120
    regression = ImageFolder(str(digits / "table.csv"), target="size")
    assert regression.spec["out_features"] == 1
    assert regression.sources["train"][0][1].dtype == torch.float32


def refused(key: str, match: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        ImageFolder(*args, **kwargs)
    assert caught.value.key == key


def test_what_cannot_be_a_set_of_images(digits: Path, tmp_path: Path) -> None:
    refused("path", "a folder of images.*/none' does not exist", str(tmp_path / "none"))
    refused("path", "The folder contains 40 images and 0 subfolders.*table of their paths", str(digits / "zero"))
    refused("path", "subfolder of images per class", str(tmp_path))
    (tmp_path / "set" / "empty").mkdir(parents=True)
    refused("path", "images of one class", str(tmp_path / "set"))
    refused("path", r"Did you mean '.*set/empty'\? '.*/emty' does not exist", str(tmp_path / "set" / "emty"))
    refused("colour", "rgb, grey", str(digits), colour="blue")
    refused("transform", "torchvision.transforms.v2", str(digits), transform=["flip"])
    refused(
        "transform",
        r"set the transforms in model\.data_preprocessor\.transforms",
        str(digits),
        transform=[Noise()],
        in_memory=True,
    )
    refused("decoder", "pillow, torchcodec", str(digits), decoder="opencv")
    refused("fold", "from 0 to 4", str(digits), folds=5, fold=5)
    refused("fold", "0, because data.folds is null. Set data.folds to the number", str(digits), fold=2)
    refused("group", "column of groups", str(digits), group="patient")
    frame = table(digits)
    frame.to_csv(digits / "table.csv", index=False)
    refused("target", "Did you mean 'label'", str(digits / "table.csv"), target="lable")
    frame.assign(path="gone.png").to_csv(digits / "gone.csv", index=False)
    refused("group", "path, label, or null", str(digits / "table.csv"), group="patient")
    refused("path", "does not exist", "a" * 400)
    refused("image", "absolute or relative to the folder of gone.csv", str(digits / "gone.csv"))


def test_files_that_are_no_images_of_one_size(digits: Path, tmp_path: Path) -> None:
    for name, size in (("a", 4), ("b", 6)):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("RGB", (size, size)).save(tmp_path / name / f"{index}.png")
    data = ImageFolder(str(tmp_path), val_fraction=0, test_fraction=0)
    with pytest.raises(TrainyardError, match=r"set data\.image_size"):
        next(data.loader("train", seed=0, device=CPU).batches())
    with pytest.raises(TrainyardError, match=r"same shape: set data\.image_size, for example to 64\."):
        ImageFolder(str(tmp_path), val_fraction=0, test_fraction=0, in_memory=True)
    assert ImageFolder(str(tmp_path), val_fraction=0, test_fraction=0, image_size=5).spec["image_size"] == 5
    (tmp_path / "a" / "0.png").write_text("no image")
    with pytest.raises(TrainyardError, match=r"0.png cannot be read"):
        ImageFolder(str(tmp_path), val_fraction=0, test_fraction=0, image_size=5, in_memory=True)


def test_a_missing_package_names_its_extra() -> None:
    if find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    with pytest.raises(ConfigError, match=r"trainyard\[vision\]"):
        check_tree({"_target_": "torchvision.transforms.v2.RandomHorizontalFlip"}, "data.transform.0")


def test_a_missing_decoder_says_how_to_install_it(digits: Path) -> None:
    if find_spec("torchcodec"):
        pytest.skip("torchcodec is installed")
    refused("decoder", "pip install torchcodec", str(digits), decoder="torchcodec")


def data(root: Path, **more: Any) -> dict[str, Any]:
    return {"_target_": "trainyard.data.ImageFolder", "path": str(root), "batch_size": 16, **more}


def test_images_train(digits: Path) -> None:
    loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 15}
    values = training(data(digits), MODEL, metric=METRICS, objective="val/accuracy", loop=loop)
    assert trained(values).members[0].metrics["val/accuracy"] > 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_images_resume_to_the_bits(digits: Path, tmp_path: Path, workers: int) -> None:
    resumes_to_the_bits(training(data(digits, workers=workers, transform=[{"_target_": Noise}]), MODEL), tmp_path, 8)


def test_a_stack_over_images_in_memory_follows_its_members(digits: Path) -> None:
    stack_follows_members(training(data(digits, in_memory=True), MODEL))


def test_transforms_of_torchvision(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", exc_type=ImportError)
    v2 = "torchvision.transforms.v2"
    transform = [{"_target_": f"{v2}.RandomResizedCrop", "size": 8}, {"_target_": f"{v2}.RandomHorizontalFlip"}]
    resumes_to_the_bits(training(data(digits, transform=transform), MODEL), tmp_path, 8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """JPEG files of several sizes, one of them gray: root/<class>/<number>.jpg."""
    draws = np.random.default_rng(0)
    for index in range(12):
        folder = tmp_path / "photos" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(draws.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        image = noise.resize((50 + index, 40), Image.Resampling.BICUBIC)
        (image.convert("L") if index == 3 else image).save(folder / f"{index}.jpg")
    return tmp_path / "photos"


def test_the_layout_in_memory_does_not_change_what_torchvision_gives(photos: Path) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=ImportError)
    for transform in (v2.RandomResizedCrop(24), v2.Resize((24, 24)), v2.RandomResizedCrop(24, interpolation=3)):
        own: Any = ImageFolder(str(photos), transform=[transform, v2.RandomHorizontalFlip()], eval_transform=transform)
        images = own.sources["train"]
        batches = []
        for interleaved in (True, False):
            images.interleaved = interleaved
            torch.manual_seed(0)
            batches.append(images.batch(list(range(len(images))))[0])
        assert batches[0].dtype == torch.uint8
        assert torch.equal(*batches)


def test_torchcodec_decodes_jpeg_files(photos: Path, digits: Path) -> None:
    pytest.importorskip("torchcodec.decoders", exc_type=ImportError)
    for colour, apart in (("rgb", 0), ("grey", 8 / 255)):  # gray: the luminance in the file, or that of its colours
        served = []
        for decoder in ("pillow", "torchcodec"):
            own = ImageFolder(
                str(photos), colour=colour, decoder=decoder, image_size=24, val_fraction=0, test_fraction=0
            )
            served.append(next(own.loader("train", seed=0, device=CPU).batches())[0])
        torch.testing.assert_close(*served, rtol=0, atol=apart)
    (photos / "a" / "0.jpg").write_text("no image")
    with pytest.raises(TrainyardError, match=r"0.jpg cannot be read"):
        next(own.loader("train", seed=0, device=CPU).batches())
    assert ImageFolder(str(digits), decoder="torchcodec").spec["image_size"] == 8  # by Pillow: these are no JPEG files
