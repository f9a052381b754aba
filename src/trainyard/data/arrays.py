"""Arrays and tables from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainyard.checks import boolean, choice, integer
from trainyard.data.array_data import ArrayData, input_spec
from trainyard.data.base import check_names
from trainyard.data.fitting import MISSING, fit, refuse_gaps, width
from trainyard.data.split import Rows, check_folds, fold_of, fractions, split_rows
from trainyard.data.tables import Columns, Table, Target, read_tables
from trainyard.errors import ConfigError, FindingError, quoted
from trainyard.models.table_encoder import row_name

TASKS = ("auto", "classification", "regression")
MOST_CLASSES = 100
"""A column with more classes than this, and with different strings in more than half of the rows, contains text."""
REGRESSION_LOSS = {"_target_": "torch.nn.MSELoss"}
"""Loss of a model with `loss: auto` in its config, for regression data."""


class Arrays(ArrayData):
    """Inputs and targets from `.npz`, `.npy`, `.csv` or `.parquet` files.

    A batch is `(x, y)`: x float32 `[B, F]`, or with the further dimensions of the array, such as `[B, C, H, W]`.
    Integer and string targets are classes: y int64 `[B]`, numbered in sorted order. Float targets are for regression:
    y float32 `[B]`, or `[B, D]` for D targets.

    In a table, columns of numbers and of strings (categories) are inputs. Batches contain them unchanged.
    `preprocessor` is the config of a module that the Runner places before the model. This module contains the
    statistics of the training rows (mean and standard deviation, values for missing entries, categories). Checkpoints
    contain these statistics.

    A split with separate data (`x_val` in an `.npz`, `val_path`) is used unchanged. Other splits are drawn from the
    training data by their fractions, stratified by class.

    Args:
        path: the file. An `.npz` has `x` and `y`, or `x_train`, `y_train`, `x_val`, ... An `.npy` has the inputs.
        target: the column to predict, or a list of columns for regression; in an `.npz`, the key that replaces `y`; for
            an `.npy`, the path of the file with the targets.
        features: the input columns. Default: all except the target and the group.
        task: "classification" or "regression"; "auto" derives the task from the type of the targets. Set "regression"
            for integer targets of a regression.
        categories: columns of numbers that are categories (such as a postcode); columns of strings are always
            categories. Each category becomes a feature with the values 0 and 1.
        max_categories: the maximum number of categories of a column.
        missing: "refuse" (missing values are an error), or fill them with the "mean" or "median" of the training rows;
            each column with missing values gets an additional feature that marks them. A missing category is 0 in all
            of its features.
        standardize: shift and scale each feature (images: each channel) to mean 0 and standard deviation 1, as
            measured on the training split.
        val_path, test_path: separate files for validation and test, with the structure of `path` (not `.npy`); or
            several files with names: `{"easy": "easy.csv", "hard": "hard.csv"}` are the splits "val/easy" and
            "val/hard".
        val_fraction, test_fraction: fractions of the training data for splits without separate data; 0: the split does
            not exist.
        split_seed: the seed of the split, independent of the run's seed, so that runs use the same test samples.
        group: the column (in an `.npz`, the key) of groups, such as patients: all rows of a group are in one split.
        folds, fold: for cross-validation, the number of folds and the fold for validation, counted from 0. The other
            folds are for training.
        batch_size, eval_batch_size, drop_last, workers: see `ArrayData`.

    Attributes:
        classes: the name of each class, for classification; otherwise empty.
        preprocessor: see above; None if the inputs are used unchanged.

    Raises:
        ConfigError: a file or column does not exist, lengths differ, values are not finite, a shape or suffix is not
            supported, or another value is invalid.
    """

    def __init__(
        self,
        path: str,
        target: Target = None,
        features: Sequence[str] | None = None,
        task: str = "auto",
        categories: Sequence[str] = (),
        max_categories: int = 100,
        missing: str = "refuse",
        standardize: bool = False,
        val_path: str | Mapping[str, str] | None = None,
        test_path: str | Mapping[str, str] | None = None,
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
    ) -> None:
        choice("task", task, TASKS)
        choice("missing", missing, MISSING)
        boolean("standardize", standardize)
        integer("max_categories", max_categories, at_least=1)
        shares, chosen_fold = fractions(val_fraction, test_fraction), fold_of(folds, fold)
        chosen = Columns.of(target, features, categories, group)
        tables = read_tables("path", path, chosen)
        if "train" not in tables:
            raise ConfigError("path", path, "a file with training data (x or x_train)")
        separate: dict[str, tuple[str, str]] = {}
        for split, given in (("val", val_path), ("test", test_path)):
            if given is None:
                continue
            tables.pop(split, None)
            if isinstance(given, Mapping):
                check_names(f"{split}_path", given)
            for name, own in given.items() if isinstance(given, Mapping) else [("", given)]:
                named = f"{split}/{name}" if isinstance(given, Mapping) else split
                if str(own).lower().endswith(".npy"):
                    hint = "Put the arrays into one .npz file: x_train, y_train, x_val, ..."
                    raise ConfigError(_key(named), own, "an .npz, .csv or .parquet file", hint=hint)
                separate[named] = _key(named), str(own)
                more = read_tables(_key(named), own, _columns_of(own, chosen, tables["train"]))
                if split not in more and len(more) > 1:
                    hint = f"The file contains {', '.join(f'x_{each}' for each in more)}."
                    raise ConfigError(_key(named), own, f"a file with x, x_{split}, or a single split", hint=hint)
                tables[named] = more[split] if split in more else next(iter(more.values()))
        check_folds(folds, tables)
        regression = tables["train"].y.dtype.kind == "f" if task == "auto" else task == "regression"
        _check_alike(tables, separate, regression)
        if missing == "refuse":
            refuse_gaps(tables, {split: separate.get(split, ("path", str(path))) for split in tables})

        self.classes: list[Any] = []
        ys = [table.y for table in tables.values()]
        numbered: Sequence[npt.NDArray[Any]] = _as_numbers(ys) if regression else self._as_classes(ys)
        if len(self.classes) > max(MOST_CLASSES, sum(map(len, ys)) // 2) and isinstance(self.classes[0], str):
            found = f"the targets are {len(self.classes)} different strings in {sum(map(len, ys))} rows"
            hint = "If the targets are numbers as text, convert them to numbers. For text as input, use data=hf."
            raise FindingError("target", found, "classes", hint=hint)
        tables = {split: tables[split]._replace(y=y) for split, y in zip(tables, numbered, strict=True)}

        own_data = {split.partition("/")[0] for split in tables}
        drawn = {split: share for split, share in shares.items() if split not in own_data}
        train = tables["train"]
        rows = split_rows(
            len(train.x),
            drawn,
            split_seed,
            None if regression else train.y,
            groups=train.groups,
            fold=chosen_fold,
        )
        tables |= {split: _taken(train, chosen_rows) for split, chosen_rows in rows.items()}
        self.preprocessor = fit(
            tables, str(path), standardize=standardize, missing=missing, max_categories=max_categories
        )

        x, y = tables["train"].x, tables["train"].y
        spec = input_spec(x.shape[1:])
        if self.preprocessor is not None:
            spec["in_features"] = width(self.preprocessor, spec["in_features"])
        if regression:
            spec |= {"out_features": 1 if y.ndim == 1 else y.shape[1], "loss": dict(REGRESSION_LOSS)}
        else:
            spec["num_classes"] = len(self.classes)
        super().__init__(
            {split: (torch.from_numpy(table.x), torch.from_numpy(table.y)) for split, table in tables.items()},
            spec,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            workers=workers,
        )

    def _as_classes(self, ys: list[npt.NDArray[Any]]) -> list[npt.NDArray[np.int64]]:
        if ys[0].ndim != 1:
            hint = (
                "Several targets per sample must be numbers, and require regression: set data.task=regression and "
                "metric=regression."
            )
            found = f"the targets have the shape {list(ys[0].shape)}"
            raise FindingError("target", found, "one class per sample, [N]", hint=hint)
        classes, numbers = np.unique(np.concatenate(ys), return_inverse=True)
        self.classes = classes.tolist()
        return np.split(numbers.astype(np.int64), np.cumsum([len(y) for y in ys])[:-1])


def _as_numbers(ys: list[npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
    if ys[0].dtype.kind not in "biuf":
        raise ConfigError("task", "regression", "auto or classification, because the targets are strings")
    return [y.astype(np.float32) for y in ys]


def _columns_of(path: str, chosen: Columns, train: Table) -> Columns:
    """Return the columns to read from a file of validation or test data: those of the training data, with the same
    kinds."""
    if train.names is None or not str(path).lower().endswith((".csv", ".parquet")):
        return chosen._replace(group=None, source="data.path")
    texts = [train.names[index] for index in train.texts]
    return Columns(chosen.target, train.names, texts, source="data.path")


def _taken(table: Table, rows: Rows) -> Table:
    """Return selected rows of a table."""
    texts = {index: values[rows] for index, values in table.texts.items()}
    return Table(table.x[rows], table.y[rows], texts, table.names)


def _check_alike(tables: dict[str, Table], separate: Mapping[str, Any], regression: bool) -> None:
    """Raise a ConfigError unless the inputs and targets of all splits have the same shape and kind.

    Splits that are not in `separate` are in the file of the training split. For regression, integers and floats are the
    same kind: the same column can be read as floats in one file and as integers in another.
    """
    train = tables["train"]
    for split, table in tables.items():
        key, where = (_key(split), "") if split in separate else ("path", f" of the split {split}")
        if table.x.shape[1:] != train.x.shape[1:]:
            found = f"the inputs{where} have the shape {list(table.x.shape[1:])}"
            raise FindingError(key, found, f"{list(train.x.shape[1:])}, as in the training split")
        kinds = [_kind(y, regression) for y in (table.y, train.y)]
        if kinds[0] != kinds[1]:
            raise FindingError(key, f"the targets{where} are {kinds[0]}", f"{kinds[1]}, as in the training split")
        for index in sorted(table.texts.keys() - train.texts.keys()):
            key, file = separate[split]
            _refuse_texts(key, file, table, index)


def _refuse_texts(key: str, file: str, table: Table, index: int) -> None:
    """Raise a ConfigError: a column of numbers of the training data contains texts in this table."""
    texts = table.texts[index]
    row = next((row for row, text in enumerate(texts) if text is not None and not _is_number(text)), 0)
    where = f"{row_name(row, file, len(texts))} contains {quoted(texts[row])}"
    name = (table.names or [])[index]
    raise ConfigError(key, file, f"a table with numbers in the column {quoted(name)}, as in the training data; {where}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _key(split: str) -> str:
    """Return the argument that names the file of a split: `val_path`, or `val_path.easy`."""
    name, _, own = split.partition("/")
    return f"{name}_path.{own}" if own else f"{name}_path"


def _kind(y: npt.NDArray[Any], regression: bool) -> str:
    name = {"f": "floats", "U": "strings", "S": "strings"}.get(y.dtype.kind, "integers")
    name = "numbers" if regression and name != "strings" else name
    return name if y.ndim == 1 else f"{y.shape[1]} {name} per sample"
