"""Image classification sets by name, from torchvision or with its interface."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from trainyard.checks import boolean, integer
from trainyard.data.array_data import ArrayData, Source, input_spec
from trainyard.data.split import fractions, split_rows
from trainyard.errors import ConfigError
from trainyard.models.libraries import library


class Torchvision(ArrayData):
    """A classification set of `torchvision.datasets`, with its own test part.

    Validation samples are drawn from the training part of the set.

    A batch is `(x, y)`: x float32 `[B, C, H, W]` in [0, 1], y int64 `[B]`. A data set with its images in one array
    (`.data`, with `.targets` or `.labels`: MNIST, CIFAR10, SVHN, ...) is kept in memory, as bytes on the training
    device. A `DataLoader` with `workers` reads a data set with one file per image.

    Args:
        name: a class of `torchvision.datasets` that takes `train` (true, false) or `split` ("train", "test"), or the
            full name (`package.module.Class`) of any class with the same interface.
        root: the folder of the files.
        download: download missing files.
        image_size: for a data set with one file per image, the side of the square to which images are resized, in
            pixels.
        val_fraction: fraction of the training part, stratified by class if the set lists its labels; 0: no validation.
        split_seed: the seed of the split.
        batch_size, eval_batch_size, drop_last, workers: see `ArrayData`.

    Raises:
        ConfigError: torchvision is not installed, the data set does not exist, files are missing or cannot be
            downloaded, or another value is invalid.
    """

    def __init__(
        self,
        name: str,
        root: str = "~/.cache/torchvision",
        download: bool = False,
        image_size: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        workers: int = 0,
    ) -> None:
        shares = {"val": fractions(val_fraction, 0.0)["val"]}
        size = (
            None
            if image_size is None
            else integer("image_size", image_size, at_least=1, other="null to keep the sizes")
        )
        kind = _class(name)
        parts = [_part(kind, name, root, boolean("download", download), train) for train in (True, False)]
        labels = _labels(parts)
        rows = split_rows(len(parts[0]), shares, split_seed, labels[0] if labels else None)

        images = [_images(part) for part in parts]
        sources: dict[str, Source]
        if labels and images[0] is not None and images[1] is not None:
            if size is not None:
                raise ConfigError("image_size", size, f"null for {name}, whose images have a fixed size")
            x, y = images[0], torch.from_numpy(labels[0])
            sources = {split: (x[chosen], y[chosen]) for split, chosen in rows.items()}
            sources["test"] = images[1], torch.from_numpy(labels[1])
            shape = x.shape[1:]
        else:
            train, test = (_Samples(part, labels[i] if labels else None, size) for i, part in enumerate(parts))
            sources = {split: Subset(train, chosen.tolist()) for split, chosen in rows.items()}
            sources["test"] = test
            shape = train[0][0].shape
        super().__init__(
            sources,
            {**input_spec(shape), "num_classes": _count(name, parts[0], labels)},
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            workers=workers,
        )


class _Samples(Dataset[tuple[Tensor, int]]):
    """Samples of a data set of `(PIL image or array, label)`, with the image as float32 `[C, H, W]` in [0, 1]."""

    def __init__(self, part: Any, labels: npt.NDArray[np.int64] | None, size: int | None) -> None:
        self.part = part
        self.labels = labels
        self.size = size

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.part[index]
        label = int(label if self.labels is None else self.labels[index])
        if isinstance(image, Tensor):
            return image, label
        if self.size is not None:
            image = image.resize((self.size, self.size))
        pixels = np.array(image)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div_(255), label


def _class(name: object) -> Any:
    if not isinstance(name, str):
        raise ConfigError("name", name, "the name of a class of torchvision.datasets, or package.module.Class")
    prefix, dot, class_name = name.rpartition(".")
    module_name = prefix or "torchvision.datasets"
    try:
        module = importlib.import_module(module_name) if prefix else library(module_name, "vision", "name")
    except ImportError as error:
        raise ConfigError("name", name, "the name of an importable class", hint=f"{error}.") from error
    kind = getattr(module, class_name, None)
    if not inspect.isclass(kind):
        names = [prefix + dot + key for key, value in vars(module).items() if inspect.isclass(value)]
        raise ConfigError("name", name, f"a class of {module_name}", options=names)
    return kind


def _part(kind: Any, name: str, root: str, download: bool, train: bool) -> Any:
    accepts = inspect.signature(kind).parameters
    which: dict[str, Any]
    if "train" in accepts:
        which = {"train": train}
    elif "split" in accepts:
        which = {"split": "train" if train else "test"}
    else:
        raise ConfigError(
            "name", name, "a data set with a training and a test part, whose class takes `train` or `split`"
        )
    if "download" in accepts:
        which["download"] = download
    try:
        return kind(str(Path(root).expanduser()), **which)
    except (RuntimeError, OSError) as error:
        accepted = f"a folder with the files of {name}"
        hint = f"{str(error).rstrip('.')}."
        if which.get("download"):
            accepted += ", or one to which they can be downloaded"
            hint = f"Loading or downloading the files failed: {hint}"
        elif "download" in accepts:
            hint += " Set data.download=true to download the files."
        raise ConfigError("root", root, accepted, hint=hint) from error
    except ValueError as error:  # a value of `split`
        accepted = "a data set with a training and a test part, whose class takes `train`, or `split` (train, test)"
        raise ConfigError("name", name, accepted, hint=f"{str(error).rstrip('.')}.") from error
    except ImportError as error:
        accepted = "a data set whose required packages are installed"
        raise ConfigError("name", name, accepted, hint=f"{str(error).rstrip('.')}.") from error


def _labels(parts: list[Any]) -> list[npt.NDArray[np.int64]] | None:
    """Return the class numbers `0..C-1` of every sample of the parts; None if the parts do not list them."""
    for attribute in ("targets", "labels"):
        given = [getattr(part, attribute, None) for part in parts]
        if all(labels is not None for labels in given):
            every = [np.asarray(labels).reshape(-1) for labels in given]
            numbers = np.unique(np.concatenate(every), return_inverse=True)[1].astype(np.int64)
            return np.split(numbers, [len(every[0])])
    return None


def _images(part: Any) -> Tensor | None:
    """Return the images of a data set that contains all of them in one array, uint8 `[N, C, H, W]`; None for other data
    sets."""
    data = getattr(part, "data", None)
    if not isinstance(data, np.ndarray | Tensor) or getattr(part, "transform", None) is not None:
        return None
    images = torch.as_tensor(data)
    if images.dtype != torch.uint8 or images.ndim not in (3, 4):
        return None
    if images.ndim == 3:
        return images.unsqueeze(1)
    colours = (1, 3, 4)
    last = images.shape[1] not in colours and images.shape[3] in colours
    return images.permute(0, 3, 1, 2).contiguous() if last else images


def _count(name: str, part: Any, labels: list[npt.NDArray[np.int64]] | None) -> int:
    if labels:
        return 1 + int(max(part_labels.max() for part_labels in labels))
    if getattr(part, "classes", None):
        return len(part.classes)
    raise ConfigError("name", name, "a data set that lists its classes, its targets or its labels")
