"""Statistics of the training rows of a table, for the model that is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainyard.data.tables import Table
from trainyard.errors import ConfigError
from trainyard.models.table_encoder import codes_of, row_name

Floats = npt.NDArray[np.float32]
MISSING = ("refuse", "mean", "median")
_ENCODER = "trainyard.models.TableEncoder"
_PREPROCESSOR = "trainyard.models.DataPreprocessor"


def fit(
    tables: Mapping[str, Table],
    path: str,
    *,
    standardize: bool,
    missing: str,
    max_categories: int,
) -> dict[str, Any] | None:
    """Return the config of the preprocessor that the training rows need; None if no preprocessor is needed.

    Args:
        tables: the splits; columns of categories get their codes, in place.
        path: the file of the training rows, for messages.
        standardize: shift and scale numbers (images: each channel) to mean 0 and standard deviation 1.
        missing: the value for missing entries in a numeric column: "mean" or "median" of the column; "refuse" if the
            tables have none (`refuse_gaps`).
        max_categories: the maximum number of categories of a column.

    Raises:
        ConfigError: a column has too many categories or no number.
    """
    train = tables["train"]
    if train.names is None and missing != "refuse" and train.x.ndim != 2:
        raise ConfigError("missing", missing, "refuse, because these inputs are not a table [N, F]")
    if train.names is None and missing == "refuse":
        if not standardize:
            return None
        mean, std = _moments(train.x)
        return {"_target_": _PREPROCESSOR, "mean": mean.tolist(), "std": std.tolist(), "fitted": True}
    names = train.names or [str(index) for index in range(train.x.shape[1])]
    categories = {
        names[index]: _categories(names[index], texts, max_categories) for index, texts in train.texts.items()
    }
    for table in tables.values():
        for index, texts in table.texts.items():
            table.x[:, index] = codes_of(texts, categories[names[index]])
    numbers = [index for index in range(len(names)) if index not in train.texts]
    gaps = [name for name, column in zip(names, train.x.T, strict=True) if np.isnan(column).any()]
    if not standardize and not categories and missing == "refuse":
        return None
    chosen = train.x[:, numbers].astype(np.float64)
    for index, column in zip(numbers, chosen.T, strict=True):
        if np.isnan(column).all():
            if train.names is None:
                accepted = (
                    "inputs with a number in each column; in the training rows, "
                    f"column {index} (counted from 0) has none"
                )
                raise ConfigError("path", path, accepted)
            hint = "To exclude this column, name the columns to use: data.features=[…]."
            raise ConfigError("features", names[index], "a column with a number in the training rows", hint=hint)
    fill = (np.nanmedian if missing == "median" else np.nanmean)(chosen, axis=0) if numbers else np.zeros(0)
    mean, std = np.zeros(len(numbers)), np.ones(len(numbers))
    if standardize and numbers:
        mean, std = _moments(np.where(np.isnan(chosen), fill, chosen))
    return {
        "_target_": _ENCODER,
        "columns": names,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "fill": fill.tolist(),
        "categories": categories,
        "gaps": gaps,
    }


def width(node: Mapping[str, Any], features: int) -> int:
    """Return the number of features that the preprocessor creates from `features` numbers."""
    if node["_target_"] == _PREPROCESSOR:
        return features
    return len(node["mean"]) + sum(map(len, node["categories"].values())) + len(node["gaps"])


def refuse_gaps(tables: Mapping[str, Table], files: Mapping[str, tuple[str, str]]) -> None:
    """Check that no value is missing.

    Args:
        tables: the tables as they are in the files, so that the message names the row of the file.
        files: for each split, the argument that names its file, and the file.

    Raises:
        ConfigError: a value is missing.
    """
    for split, table in tables.items():
        shared = list(files.values()).count(files[split]) > 1
        _refuse_gaps(table, *files[split], of=f" of {split}" if shared else "")


def _refuse_gaps(table: Table, key: str, file: str, *, of: str) -> None:
    empty = np.isnan(table.x)
    for index, texts in table.texts.items():
        empty[:, index] = [text is None for text in texts]
    if not empty.any():
        return
    row = int(empty.reshape(len(empty), -1).any(axis=1).argmax())
    hint = "data.missing=mean (or median) fills missing values and tells the model which were missing."
    if table.x.ndim != 2:
        hint = "Remove this sample, or fill its missing values."
    if table.names is None:
        raise ConfigError(key, file, f"inputs without missing values; {row_name(row)}{of} contains NaN", hint=hint)
    name = table.names[int(empty[row].argmax())]
    accepted = f"columns without missing values; in this column, {row_name(row, file, len(empty))} is empty or NaN"
    raise ConfigError("features", name, accepted, hint=hint)


def _categories(name: str, texts: npt.NDArray[Any], most: int) -> list[str]:
    known = sorted({text for text in texts if text is not None})
    if len(known) > most:
        hint = (
            "A column with a different value in nearly every row is usually not categorical: exclude the column by "
            "naming the other columns, data.features=[…]. If the column is categorical, set "
            f"data.max_categories={len(known)}. For text, use data=hf."
        )
        raise ConfigError(
            "features", name, f"columns of at most {most} categories, but this column has {len(known)}", hint=hint
        )
    return known


def _moments(x: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and standard deviation (1 for a constant) of each feature, or of each channel of `[N, C, H, W]`."""
    axes = (0, *range(2, x.ndim))
    mean, std = x.mean(axis=axes, dtype=np.float64), x.std(axis=axes, dtype=np.float64)
    return mean, np.where(std > 0, std, 1.0)
