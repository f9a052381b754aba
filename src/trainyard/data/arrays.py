"""Arrays and tables of the user, read from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainyard.checks import boolean, choice
from trainyard.data.array_data import ArrayData, input_spec
from trainyard.data.split import fractions, split_rows
from trainyard.data.tables import Table, Target, read_tables
from trainyard.errors import ConfigError

TASKS = ("auto", "classification", "regression")


class Arrays(ArrayData):
    """Inputs and targets from `.npz`, `.npy`, `.csv` or `.parquet` files.

    A batch is `(x, y)`: x float32 `[B, F]`, or with the further dimensions of the array, such as `[B, C, H, W]`.
    Integer and string targets are classes: y int64 `[B]`, numbered in sorted order. Float targets are for regression:
    y float32 `[B]`, or `[B, D]` where there are D of them.

    A split that has data of its own (`x_val` in an `.npz`, `val_path`) is used as it is. One that has none is drawn
    from the training data by its fraction, stratified by class.

    Args:
        path: the file. An `.npz` has `x` and `y`, or `x_train`, `y_train`, `x_val`, ... An `.npy` has the inputs.
        target: the column to predict, or a list of columns for regression; in an `.npz`, the key in the place of `y`;
            for an `.npy`, the path of the targets' file.
        features: the columns to predict from. Default: all but the target.
        task: "classification" or "regression", where "auto" would guess wrong: integers that are amounts, say.
        val_path, test_path: files of their own for validation and test, laid out like `path` (not `.npy`); or several
            by name: `{"easy": "easy.csv", "hard": "hard.csv"}` are the splits "val/easy" and "val/hard".
        val_fraction, test_fraction: shares of the training data for splits that have none of their own; 0 leaves
            such a split out.
        split_seed: the seed of the split. It is not the run's seed: runs compare on the same test samples.
        standardize: shift and scale each feature (images: each channel) to mean 0 and standard deviation 1, as
            measured on the training split.
        batch_size, eval_batch_size, drop_last, workers: see `ArrayData`.

    Attributes:
        classes: what class i stands for, for classification; else empty.
        mean, std: float32, broadcast against one sample, where `standardize` is set; else None.

    Raises:
        ConfigError: no such file or column, lengths that disagree, values that are not finite, a shape or suffix
            that is not supported, or another value that cannot work.
    """

    def __init__(
        self,
        path: str,
        target: Target = None,
        features: Sequence[str] | None = None,
        task: str = "auto",
        val_path: str | Mapping[str, str] | None = None,
        test_path: str | Mapping[str, str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        standardize: bool = False,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        workers: int = 0,
    ) -> None:
        choice("task", task, TASKS)
        shares = fractions(val_fraction, test_fraction)
        tables = read_tables("path", path, target, features)
        if "train" not in tables:
            raise ConfigError("path", path, "a file with training data (x_train)")
        for split, given in (("val", val_path), ("test", test_path)):
            if given is None:
                continue
            tables.pop(split, None)
            for name, own in given.items() if isinstance(given, Mapping) else [("", given)]:
                named = f"{split}/{name}" if isinstance(given, Mapping) else split
                if str(own).lower().endswith(".npy"):
                    hint = "Put the arrays into one .npz: x_train, y_train, x_val, ..."
                    raise ConfigError(_key(named), own, "an .npz, .csv or .parquet file", hint=hint)
                more = read_tables(_key(named), own, target, features)
                tables[named] = more[split] if split in more else next(iter(more.values()))
        _check_alike(tables)

        self.classes: list[Any] = []
        ys = [table.y for table in tables.values()]
        regression = ys[0].dtype.kind == "f" if task == "auto" else task == "regression"
        numbered: Sequence[npt.NDArray[Any]] = _as_numbers(ys) if regression else self._as_classes(ys)
        inputs = {split: table.x for split, table in tables.items()}
        targets = dict(zip(tables, numbered, strict=True))

        own_data = {split.partition("/")[0] for split in tables}
        drawn = {split: share for split, share in shares.items() if split not in own_data}
        x, y = inputs["train"], targets["train"]
        for split, rows in split_rows(len(x), drawn, split_seed, None if regression else y).items():
            inputs[split], targets[split] = x[rows], y[rows]

        self.mean: npt.NDArray[np.float32] | None = None
        self.std: npt.NDArray[np.float32] | None = None
        if boolean("standardize", standardize):
            self.mean, self.std = _moments(inputs["train"])
            inputs = {split: (x - self.mean) / self.std for split, x in inputs.items()}

        facts = {"out_features": 1 if y.ndim == 1 else y.shape[1]} if regression else {"num_classes": len(self.classes)}
        super().__init__(
            {split: (torch.from_numpy(inputs[split]), torch.from_numpy(targets[split])) for split in inputs},
            {**input_spec(x.shape[1:]), **facts},
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            workers=workers,
        )

    def _as_classes(self, ys: list[npt.NDArray[Any]]) -> list[npt.NDArray[np.int64]]:
        if ys[0].ndim != 1:
            hint = "Several targets are for regression: task=regression, or floats."
            raise ConfigError("target", list(ys[0].shape), "one class a sample: [N] integers or strings", hint=hint)
        classes, numbers = np.unique(np.concatenate(ys), return_inverse=True)
        self.classes = classes.tolist()
        return np.split(numbers.astype(np.int64), np.cumsum([len(y) for y in ys])[:-1])


def _as_numbers(ys: list[npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
    if ys[0].dtype.kind not in "biuf":
        raise ConfigError("task", "regression", "classification, where the targets are strings")
    return [y.astype(np.float32) for y in ys]


def _check_alike(tables: dict[str, Table]) -> None:
    """Raise a ConfigError unless the splits' inputs and targets have one shape and kind."""
    train = tables["train"]
    for split, table in tables.items():
        if table.x.shape[1:] != train.x.shape[1:]:
            shapes = list(table.x.shape[1:]), list(train.x.shape[1:])
            raise ConfigError(_key(split), shapes[0], f"inputs of the shape {shapes[1]} that the training split has")
        kinds = [_kind(y) for y in (table.y, train.y)]
        if kinds[0] != kinds[1]:
            raise ConfigError(_key(split), kinds[0], f"targets that are {kinds[1]}, as in the training split")


def _key(split: str) -> str:
    """Return the argument that names the file of a split: `val_path`, or `val_path.easy`."""
    name, _, own = split.partition("/")
    return f"{name}_path.{own}" if own else f"{name}_path"


def _kind(y: npt.NDArray[Any]) -> str:
    name = {"f": "floats", "U": "strings", "S": "strings"}.get(y.dtype.kind, "integers")
    return name if y.ndim == 1 else f"{y.shape[1]} {name} a sample"


def _moments(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and standard deviation (1 for a constant) of each feature, or channel of images `[N, C, H, W]`."""
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64)[0].astype(np.float32)
    std = x.std(axis=axes, keepdims=True, dtype=np.float64)[0].astype(np.float32)
    return mean, np.where(std > 0, std, np.float32(1))
