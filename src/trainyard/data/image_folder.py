"""Images in files: a folder for each class, or a table of paths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainyard.checks import boolean, choice, integer, is_file, is_folder, neighbors
from trainyard.data.array_data import ArrayData, Source, input_spec
from trainyard.data.arrays import REGRESSION_LOSS
from trainyard.data.base import SPLITS, Loader
from trainyard.data.dataset_loader import batch_loader
from trainyard.data.images import COLOURS, DECODERS, Files, Images, Transform, as_floats
from trainyard.data.order import EpochBatchSampler
from trainyard.data.split import check_folds, fold_of, fractions, split_rows
from trainyard.data.tables import group_numbers, read_frame, target_column
from trainyard.errors import ConfigError, counted, first_line, quoted
from trainyard.models.augment import functions

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_SPLITS = {*SPLITS, "training", "valid", "validation", "testing"}
"""Names of folders, in lower case, of which two are not classes."""
_ACCEPTED = "a folder of images, or a .csv or .parquet file with their paths"


class ImageFolder(ArrayData):
    """Image files with classes or regression targets.

    `path` is a folder with one folder of images per class; or with folders `train`, `val` and `test` of this form
    and no other folders; or a `.csv` or `.parquet` with a column of paths (relative to its folder) and a column of
    targets: integers and strings are classes, floats are for regression.

    A batch is `(x, y)`: x float32 `[B, C, H, W]` in [0, 1], y int64 `[B]`, or float32 `[B]` for regression.

    Args:
        path: see above.
        image, target: in a table, the columns of the paths and of the targets.
        colour: "rgb" or "grey"; images are converted.
        image_size: the side of the square to which images are resized, in pixels. Required if the images have different
            sizes and no transform gives them equal sizes.
        transform: functions from an image to an image, uint8 `[C, H, W]`, in order, for training, such as those of
            `torchvision.transforms.v2`. The last transform may return floats.
        eval_transform: the transforms for validation and test.
        in_memory: decode all images at the start, and keep them as bytes on the training device.
        val_path, test_path: for validation and test, a table, or a folder with one folder of images per class.
        val_fraction, test_fraction, split_seed: see `Arrays`.
        group: in a table, the column of groups: all images of a group are in one split.
        folds, fold: for cross-validation, the number of folds and the fold for validation, counted from 0. The other
            folds are for training.
        batch_size, eval_batch_size, drop_last, workers: see `ArrayData`.
        decoder: the decoder of JPEG files: "pillow", or "torchcodec", which takes three quarters of the time. Pillow
            decodes other files.

    Attributes:
        classes: the name of each class; empty for regression.

    Raises:
        ConfigError: a folder or column does not exist, a folder has no classes or no images, a folder has splits and
            other folders, images have different sizes, or another value is invalid.
    """

    def __init__(
        self,
        path: str,
        image: str = "path",
        target: str = "label",
        colour: str = "rgb",
        image_size: int | None = None,
        transform: Sequence[Transform] | Transform | None = None,
        eval_transform: Sequence[Transform] | Transform | None = None,
        in_memory: bool = False,
        val_path: str | None = None,
        test_path: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        group: str | None = None,
        folds: int | None = None,
        fold: int = 0,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        workers: int = 0,
        decoder: str = "pillow",
    ) -> None:
        shares, chosen_fold = fractions(val_fraction, test_fraction), fold_of(folds, fold)
        choice("colour", colour, COLOURS)
        if choice("decoder", decoder, DECODERS) == "torchcodec":
            try:
                import_module("torchcodec.decoders").decode_jpeg  # noqa: B018 (earlier versions lack it)
            except (ImportError, AttributeError, OSError, RuntimeError) as error:  # the last two: for another torch
                absent = isinstance(error, ModuleNotFoundError)
                advice = "it with: pip install torchcodec" if absent else "version 0.16 or later that fits this torch."
                hint = f"Importing torchcodec failed: {first_line(error).rstrip('.')}. Install {advice}"
                raise ConfigError(
                    "decoder", decoder, "pillow, because torchcodec does not work here", hint=hint
                ) from error
        size = (
            None
            if image_size is None
            else integer("image_size", image_size, at_least=1, other="null to keep the sizes")
        )
        train_transform, own_transform = (
            _functions("transform", transform),
            _functions("eval_transform", eval_transform),
        )
        if boolean("in_memory", in_memory) and train_transform:
            hint = (
                "To augment on the device, use +model/data_preprocessor=augment, and set the transforms in "
                "model.data_preprocessor.transforms."
            )
            raise ConfigError("transform", transform, "null, because data.in_memory is true", hint=hint)
        found = _read("path", path, image, target, group)
        for split, given in (("val", val_path), ("test", test_path)):
            if given is not None:
                found[split] = _read_alone(f"{split}_path", given, image, target)
        check_folds(folds, found)

        every = np.concatenate([files.y for files in found.values()])
        self.classes: list[Any] = []
        regression = every.dtype.kind == "f"
        numbers: npt.NDArray[Any] = every.astype(np.float32) if regression else every
        if not regression:
            classes, numbers = np.unique(every, return_inverse=True)
            self.classes = classes.tolist()
        ends = np.cumsum([len(files.y) for files in found.values()])[:-1]
        found = {s: f._replace(y=y) for (s, f), y in zip(found.items(), np.split(numbers, ends), strict=True)}
        train = found["train"]
        drawn = {split: share for split, share in shares.items() if split not in found}
        labels = None if regression else train.y
        rows = split_rows(len(train.y), drawn, split_seed, labels, groups=train.groups, fold=chosen_fold)
        found |= {split: Files([train.paths[row] for row in own], train.y[own]) for split, own in rows.items()}

        sources: dict[str, Source] = {}
        for split, files in found.items():
            images = Images(files, colour, size, train_transform if split == "train" else own_transform, decoder)
            sources[split] = images.resident() if in_memory else images
        first: Any = sources["train"][0]  # type: ignore[index]
        shape = first[0].shape
        facts: dict[str, Any] = {"num_classes": len(self.classes)}
        if regression:
            facts = {"out_features": 1, "loss": dict(REGRESSION_LOSS)}
        super().__init__(
            sources,
            {**input_spec(shape), **facts},
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            workers=workers,
        )

    def loader(self, split: str, *, seed: int, device: torch.device) -> Loader:
        """Return the loader of `split`; for images in files, the workers return bytes."""
        source = self.sources.get(split)
        if not isinstance(source, Images):
            return super().loader(split, seed=seed, device=device)
        batch_size, shuffle, drop_last = self._batching(split)
        sampler = EpochBatchSampler(len(source), batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)
        return batch_loader(source, sampler, self.workers, device, finish=as_floats)


def _functions(key: str, given: Sequence[Transform] | Transform | None) -> list[Transform]:
    return [] if given is None else functions(key, given, "null, functions from an image to an image")


def _read(key: str, path: str, image: str, target: str, group: str | None) -> dict[str, Files]:
    """Return the images of a path by split; if the path has no splits, all images are under "train"."""
    place = Path(path).expanduser() if isinstance(path, str | Path) and str(path) else None
    if place is None or not (is_folder(place) or is_file(place)):
        hint = "" if place is None else f"{quoted(str(place.absolute()))} does not exist."
        others = [] if place is None else neighbors(path, _is_source)
        accepted = _ACCEPTED if key == "path" else f"{_ACCEPTED}, or null"
        raise ConfigError(key, path, accepted, options=others, hint=hint)
    if place.is_file():
        return {"train": _of_table(key, place, image, target, group)}
    if group is not None:
        raise ConfigError("group", group, "null for a folder: only a table of paths can have a column of groups")
    inside = {folder.name: folder for folder in _folders(place)}
    if inside.keys() == {"train"} or sum(name.lower() in _SPLITS for name in inside) > 1:
        if key != "path":
            raise _not_alone(key, place, [*inside])
        others = [name for name in inside if name not in SPLITS]
        if others or "train" not in inside:
            accepted = "a folder that contains train/, and optionally val/ and test/, but no other folder"
            held = f"It contains {_shortened(others)}." if others else "It has no train/."
            own = "data.path, data.val_path and data.test_path"
            hint = f"{held} Rename or move folders, or set {own} to those of the splits."
            raise ConfigError(key, str(place), accepted, hint=hint)
        return {split: _of_folder(key, inside[split]) for split in SPLITS if split in inside}
    return {"train": _of_folder(key, place)}


def _read_alone(key: str, path: str, image: str, target: str) -> Files:
    """Return the images of a path that has no splits.

    Raises:
        ConfigError: the path is a folder of splits.
    """
    return _read(key, path, image, target, None)["train"]


def _not_alone(key: str, place: Path, inside: list[str]) -> ConfigError:
    """Return the error for a folder of splits where the folder of one split is expected."""
    own = place / key.removesuffix("_path")
    meant = str(own) if own.is_dir() else "the path of the folder of one split"
    hint = f"It contains {_shortened(inside)}. Set data.{key} to {meant}."
    return ConfigError(key, str(place), "a folder with one subfolder of images per class, without splits", hint=hint)


def _shortened(folders: list[str]) -> str:
    return ", ".join([f"{name}/" for name in folders[:3]] + ["…"] * (len(folders) > 3))


def _of_folder(key: str, folder: Path) -> Files:
    paths: list[str] = []
    labels: list[str] = []
    folders = _folders(folder)
    for of_class in folders:
        images = _images(of_class.rglob("*"))
        if not images:
            raise ConfigError(
                key, str(of_class), "a folder with images of one class", hint=f"No file ends in {_suffixes()}."
            )
        paths += images
        labels += [of_class.name] * len(images)
    if len(folders) < 2:
        lone = len(_images(folder.iterdir()))
        held = f"The folder contains {counted(lone, 'image')} and {counted(len(folders), 'subfolder')} with images."
        hint = f"{held} For images in a single folder, use a table of their paths and labels (.csv)."
        raise ConfigError(key, str(folder), "a folder with one subfolder of images per class, at least two", hint=hint)
    return Files(paths, np.array(labels))


def _of_table(key: str, file: Path, image: str, target: str, group: str | None) -> Files:
    if not _is_source(file):
        raise ConfigError(key, str(file), _ACCEPTED)
    frame = read_frame(key, file)
    columns = [str(column) for column in frame.columns]
    frame.columns = columns
    for argument, name in (("image", image), ("target", target), ("group", group)):
        if name is not None and name not in columns:
            held = f"one of the columns of {file.name}: {', '.join(columns)}"
            held += ", or null" if argument == "group" else ""
            raise ConfigError(argument, name, held, options=columns)
    paths = [str(file.parent / str(path)) for path in frame[image]]
    for path in paths:
        if not Path(path).is_file():
            accepted = (
                f"paths of existing images in the column {quoted(image)}, absolute or relative to the folder of "
                f"{file.name}"
            )
            raise ConfigError("image", path, accepted)
    if not paths:
        raise ConfigError(key, str(file), "a table with at least one image")
    groups = None if group is None else group_numbers(group, frame[group].to_numpy(), len(paths))
    return Files(paths, target_column(target, frame[target], str(file)), groups)


def _is_source(path: Path) -> bool:
    return is_folder(path) or path.suffix.lower() in (".csv", ".parquet")


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(files: Iterable[Path]) -> list[str]:
    return sorted(str(file) for file in files if file.suffix.lower() in SUFFIXES and file.is_file())


def _suffixes() -> str:
    return ", ".join(SUFFIXES)
