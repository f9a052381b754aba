"""Data preprocessor that converts the columns of a table to features of a model."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainyard.errors import ConfigError, FindingError, counted, quoted, some
from trainyard.models.preprocessor import DataPreprocessor

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]

UNKNOWN = -1.0
"""Code of a category that is not in the training data."""


class TableEncoder(DataPreprocessor):
    """Encodes rows of a table, float32 `[B, F]`: columns of numbers, and columns of categories, given by their codes.

    The features of a row are, in this order: each number, `(x - mean) / std`, where a missing value (NaN) is replaced
    with `fill`; for each column of categories, one 0 or 1 per category, all 0 for a missing or unknown category; and
    for each column in `gaps`, a 1 if the value is missing.

    The statistics and the digest of the categories are part of the model's state. Loading a checkpoint restores the
    statistics, and a table with other categories is rejected.

    Args:
        columns: the names of the columns, in the order of the input.
        mean, std, fill: one number for each column of numbers, in order.
        categories: for each column of categories, its categories in the order of their codes.
        gaps: the columns with an additional feature that marks missing values.
    """

    fill: Tensor
    digest: Tensor

    def __init__(
        self,
        columns: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        fill: Sequence[float],
        categories: Mapping[str, Sequence[str]] | None = None,
        gaps: Sequence[str] = (),
    ) -> None:
        self.columns = list(columns)
        self.categories = {name: list(known) for name, known in (categories or {}).items()}
        numbers = [name for name in self.columns if name not in self.categories]
        for key, given in (("mean", mean), ("std", std), ("fill", fill)):
            if len(given) != len(numbers):
                raise ConfigError(key, list(given), f"{counted(len(numbers), 'number')}, one for each numeric column")
        super().__init__(list(mean) or 0.0, list(std) or 1.0, fitted=True)
        self.register_buffer("fill", torch.tensor(list(fill), dtype=torch.float32))
        self.register_buffer("digest", torch.tensor(_digest([self.columns, self.categories])))
        self._numbers = _runs([self.columns.index(name) for name in numbers])
        self._sizes = {self.columns.index(name): len(known) for name, known in self.categories.items()}
        self._gaps = _runs([self.columns.index(name) for name in gaps])
        self.out_features = len(numbers) + sum(self._sizes.values()) + len(list(gaps))

    def normalise(self, x: Tensor) -> Tensor:
        """Return the features `[B, out_features]` of rows `[B, F]`.

        Raises:
            ConfigError: the input is not a table with these columns.
        """
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            accepted = f"[B, {len(self.columns)}] (columns: {some(self.columns, 8)})"
            raise FindingError("data_preprocessor", f"the inputs have the shape {list(x.shape)}", accepted)
        x = x if x.is_floating_point() else x.float()
        parts = []
        if self._numbers:
            numbers = torch.cat([x[:, run] for run in self._numbers], 1)
            parts.append((torch.where(numbers.isnan(), self.fill, numbers) - self.mean) / self.std)
        for column, size in self._sizes.items():
            codes = torch.arange(size, device=x.device, dtype=x.dtype)
            parts.append((x[:, column : column + 1] == codes).to(x.dtype))
        parts += [x[:, run].isnan().to(x.dtype) for run in self._gaps]
        return torch.cat(parts, 1)

    def encode_table(self, table: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Return the rows of a table, `[B, F]`, from its columns by name; other columns are ignored.

        Raises:
            ConfigError: a column is missing, or contains a string instead of a number, or a number that is not a finite
                float32.
        """
        table = table.rename(columns=str)
        rows = np.empty((len(table), len(self.columns)), np.float32)
        for index, name in enumerate(self.columns):
            if name not in table.columns:
                raise ConfigError("columns", list(table.columns), f"a table with the column {quoted(name)}")
            if name in self.categories:
                rows[:, index] = codes_of(texts_of(table[name]), self.categories[name])
                continue
            try:
                numbers = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise ConfigError("columns", name, f"a column of numbers; pandas says: {error}") from error
            check_column("columns", name, numbers, gaps=True)
            rows[:, index] = numbers
        return rows

    def decode_table(self, rows: npt.NDArray[np.float32]) -> pd.DataFrame:
        """Return rows `[B, F]` as the table that `encode_table` takes; an unknown category becomes a missing value."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for name, column in zip(self.columns, rows.T, strict=True):
            known = self.categories.get(name)
            columns[name] = column.astype(np.float64) if known is None else [_text(code, known) for code in column]
        return pd.DataFrame(columns)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}digest")
        if saved is not None and not torch.equal(saved.cpu(), self.digest.cpu()):
            accepted = "a table with the columns and categories of the table on which the checkpoint was trained"
            hint = (
                "The columns or the categories of this table differ. Set data.path to the original table. For other "
                "test data, use data.test_path."
            )
            raise ConfigError("data.path", self.columns, accepted, hint=hint)
        super()._load_from_state_dict(state_dict, prefix, *args)


def texts_of(column: pd.Series) -> npt.NDArray[Any]:
    """Return the values of a column of categories as strings; None for a missing value."""
    missing = column.isna().to_numpy()
    return np.array([None if gap else str(value) for value, gap in zip(column, missing, strict=True)], dtype=object)


def unfit(values: npt.NDArray[Any], *, gaps: bool = False) -> tuple[int, ...] | None:
    """Return the index of the first value that is not a finite float32; None if all values are.

    Args:
        values: numbers of any shape and dtype.
        gaps: accept NaN, a missing value.
    """
    if values.dtype.kind != "f":
        return None
    with np.errstate(over="ignore"):
        wrong = np.isinf(values.astype(np.float32, copy=False))
    if not gaps:
        wrong |= np.isnan(values)
    return tuple(map(int, np.unravel_index(wrong.argmax(), wrong.shape))) if wrong.any() else None


def check_column(
    argument: str, name: str, values: npt.NDArray[Any], file: str | None = None, *, gaps: bool = False
) -> None:
    """Check that a column contains only finite numbers in the range of float32; with `gaps`, also NaN.

    Args:
        argument: the key of the error.
        name: the name of the column.
        values: the column.
        file: the file of the table, for the error; None for a table in memory.
        gaps: accept NaN.

    Raises:
        ConfigError: another number; the error has the key `argument`, and names the column and the row.
    """
    if (place := unfit(values, gaps=gaps)) is not None:
        accepted = "a column of finite numbers within the range of float32; in this column, "
        raise ConfigError(argument, name, f"{accepted}{row_name(place[0], file, len(values))} {what_is(values[place])}")


def row_name(row: int, file: str | None = None, rows: int | None = None, column: int | None = None) -> str:
    """Return the name of a row for messages.

    It is the line, counted from 1 with the header, of a CSV file in which each row has one line. Otherwise, it is the
    number of the row, counted from 0.

    Args:
        row: its index in the table.
        file: the file of the table, to be named; None for an array, or if the message names the file.
        rows: the number of rows of the table.
        column: the index of a column, to be named.
    """
    if file is not None and file.lower().endswith(".csv"):
        with Path(file).expanduser().open(encoding="utf-8", errors="replace") as lines:
            if sum(1 for _ in lines) - 1 == rows:  # otherwise it has blank lines, or texts of several lines
                return f"line {row + 2} of {file}"
    place = f"row {row}" if column is None else f"row {row}, column {column}"
    return f"{place} (counted from 0)" + ("" if file is None else f" of {file}")


def what_is(value: float) -> str:
    """Describe a number that is not a finite float32, as the end of a sentence about its row."""
    return "is empty or not a number" if np.isnan(value) else f"contains {value:g}"


def as_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the inputs of a model as float32.

    Raises:
        ConfigError: a finite number is beyond the range of float32.
    """
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    beyond = np.isinf(numbers) & np.isfinite(values)
    if beyond.any():
        place = np.unravel_index(beyond.argmax(), beyond.shape)
        accepted = "numbers within the range of float32"
        raise ConfigError(
            "inputs", float(values[place]), accepted, hint=f"Index: {list(map(int, place))}." if place else ""
        )
    return numbers


def codes_of(texts: npt.NDArray[Any], categories: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the code of each string: its index in `categories`, `UNKNOWN`, or NaN for None."""
    codes = {name: float(code) for code, name in enumerate(categories)}
    return np.array([np.nan if text is None else codes.get(text, UNKNOWN) for text in texts], dtype=np.float32)


def _text(code: float, categories: Sequence[str]) -> str | None:
    return categories[int(code)] if code >= 0 else None


def _digest(value: Any) -> int:
    return zlib.crc32(repr(value).encode())


def _runs(indices: Sequence[int]) -> list[slice]:
    """Return indices as slices: adjacent indices form one slice, which needs only one operation."""
    runs: list[slice] = []
    for index in indices:
        if runs and runs[-1].stop == index:
            runs[-1] = slice(runs[-1].start, index + 1)
        else:
            runs.append(slice(index, index + 1))
    return runs
