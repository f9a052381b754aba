"""Readers of inputs and targets from `.npz`, `.npy`, `.csv` and `.parquet` files."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from trainyard.checks import existing_file, strings
from trainyard.data.base import SPLITS
from trainyard.errors import ConfigError, counted, quoted
from trainyard.models.table_encoder import check_column, row_name, texts_of, unfit, what_is

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]

SUFFIXES = (".npz", ".npy", ".csv", ".parquet")
Target = str | Sequence[str] | None


class Table(NamedTuple):
    """Inputs and targets of one split.

    Attributes:
        x: float32 `[N, ...]`, finite or NaN; the columns of `texts` are NaN.
        y: `[N]` or `[N, D]`: integers, strings, or floats that are finite and in the range of float32.
        texts: the strings `[N]` of each column of categories, by the index of the column; None for a missing value.
        names: the names of the columns; None for an array.
        groups: `[N]`, the group of each row; None if no column of groups was requested.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any]
    texts: dict[int, npt.NDArray[Any]]
    names: list[str] | None
    groups: npt.NDArray[Any] | None = None


class Columns(NamedTuple):
    """Selected columns.

    Attributes:
        target: for `.npz`, the key of the targets (default "y"); for `.npy`, the path of the file of targets; otherwise
            the name of the column, or a list of names.
        features: for `.csv` and `.parquet`, the columns of the inputs. Default: all but targets and group.
        categories: columns of numbers that are categories.
        group: the column (in an `.npz`, the key) of the groups, which a split does not divide.
        source: the file that has these columns, or its key, if they are read from another file. A column that is
            missing there is then an error of the other file.
    """

    target: Target = None
    features: Sequence[str] | None = None
    categories: Sequence[str] = ()
    group: str | None = None
    source: str = ""

    @classmethod
    def of(cls, target: object, features: object, categories: object = (), group: object = None) -> Columns:
        """Return the columns that the arguments of these names select.

        Raises:
            ConfigError: an argument is of another kind.
        """
        if target is not None and not isinstance(target, str):
            target = strings("target", target, other="a string, or null")
        if group is not None and not isinstance(group, str):
            raise ConfigError("group", group, "a string, or null")
        chosen = None if features is None else strings("features", features, other="null")
        return cls(target, chosen, strings("categories", categories), group)


def read_tables(key: str, path: str, chosen: Columns) -> dict[str, Table]:
    """Return the tables of one file, by split. If the file has no splits, its table is under "train".

    Args:
        key: the argument that named the file, for errors.
        path: the file.
        chosen: the selected columns.

    Raises:
        ConfigError: the file is missing, unreadable, or does not have the expected form.
    """
    file = existing_file(key, path, other="null" if key in ("val_path", "test_path") else "")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        suffixes = [each for each in SUFFIXES if key == "path" or each != ".npy"]
        raise ConfigError(key, str(path), f"a file whose name ends in one of {', '.join(suffixes)}")
    if suffix in (".csv", ".parquet"):
        return {"train": _read_columns(key, str(path), read_frame(key, file), chosen)}
    for name, columns, empty in (("features", chosen.features, "null"), ("categories", chosen.categories, "[]")):
        if columns:
            accepted = f"{empty} for an {suffix} file, because its inputs are one array without names"
            raise ConfigError(name, list(columns), accepted)
    if suffix == ".npz":
        return _read_npz(key, file, str(path), chosen)
    if chosen.group is not None:
        raise ConfigError("group", chosen.group, "null for an .npy file: an .npz file can contain the groups")
    if chosen.target is None:
        raise ConfigError(
            "target", None, "the path of the .npy file with the targets, because data.path is an .npy file"
        )
    arrays = _array(key, file), _array("target", existing_file("target", chosen.target))
    return {"train": _checked(key, str(path), *arrays, str(chosen.target))}


def _read_npz(key: str, file: Path, path: str, chosen: Columns) -> dict[str, Table]:
    target = "y" if chosen.target is None else chosen.target
    if not isinstance(target, str):
        raise ConfigError("target", target, "the key of the targets in the .npz file")
    arrays = _load(key, file)
    if not isinstance(arrays, dict):
        raise ConfigError(key, path, "an .npz archive", hint="This file contains a single array, as an .npy file does.")
    stems = {"train": ("x", target)} if "x" in arrays else {s: (f"x_{s}", f"{target}_{s}") for s in SPLITS}
    tables = {}
    for split, (x, y) in stems.items():
        if x in arrays:
            if y not in arrays:
                if chosen.source:
                    raise ConfigError(key, path, f"a file with the targets under {quoted(y)}", hint=_held(arrays))
                names = [name.removesuffix(f"_{split}") if y != target else name for name in arrays]
                raise ConfigError(
                    "target",
                    target,
                    f"the key of the targets: {quoted(y)} is not in the file",
                    options=names,
                    hint=_held(arrays),
                )
            tables[split] = _checked(key, path, arrays[x], arrays[y], y, f" in {path}")
            if chosen.group is not None and split == "train":
                name = chosen.group if x == "x" else f"{chosen.group}_{split}"
                if name not in arrays:
                    accepted = f"the key of the groups: {quoted(name)} is not in the file"
                    raise ConfigError("group", chosen.group, accepted, hint=_held(arrays))
                groups = group_numbers(chosen.group, arrays[name], len(arrays[x]))
                tables[split] = tables[split]._replace(groups=groups)
    if not tables:
        accepted = "an .npz file with inputs under x, x_train, x_val or x_test"
        raise ConfigError(key, str(file), accepted, hint=_held(arrays))
    return tables


def _held(arrays: dict[str, Any]) -> str:
    return f"The file contains {', '.join(sorted(arrays)) or 'no arrays'}."


def _array(key: str, file: Path) -> npt.NDArray[Any]:
    """Return the array of an `.npy` file."""
    array = _load(key, file)
    if isinstance(array, dict):
        hint = "To read inputs and targets from one archive, set data.path to a file whose name ends in .npz."
        raise ConfigError(key, str(file), "a file with a single array (.npy)", hint=f"{_held(array)} {hint}")
    return array


def _load(key: str, file: Path) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]]:
    """Return the array of an `.npy` file, or the arrays of an `.npz` archive by name; nothing is unpickled.

    The content of the file decides, not its name.
    """
    try:
        loaded: npt.NDArray[Any] | np.lib.npyio.NpzFile = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return dict(loaded)
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        hint = f"Reading the file failed: {str(error).rstrip('.')}."
        if "allow_pickle=" in str(error) and not _is_numpy(file):
            hint = "Reading the file failed: The content is neither in the .npy nor in the .npz format."
        raise ConfigError(key, str(file), "a file of arrays of numbers or strings", hint=hint) from error


def _is_numpy(file: Path) -> bool:
    """Return whether a file starts as an array or an archive of arrays."""
    with file.open("rb") as opened:
        return opened.read(6).startswith((b"\x93NUMPY", b"PK"))


def _read_columns(key: str, path: str, frame: pd.DataFrame, chosen: Columns) -> Table:
    columns = [str(column) for column in frame.columns]
    frame.columns = columns
    target = chosen.target
    if target is None:
        raise ConfigError(
            "target",
            None,
            "the name of the column to predict, or a list of several names",
            hint=f"The columns are {', '.join(columns)}.",
        )
    targets = [target] if isinstance(target, str) else list(target)
    group = [] if chosen.group is None else [chosen.group]
    rest = [name for name in columns if name not in (*targets, *group)]
    inputs = rest if chosen.features is None else list(chosen.features)
    for argument, names in (("target", targets), ("features", inputs), ("group", group)):
        if not names and argument == "features" and chosen.features is None:
            accepted = f"a table with a column of inputs; its only columns are {', '.join(columns)}"
            raise ConfigError(key, path, accepted)
        if not names and argument != "group":
            raise ConfigError(argument, names, "at least one column")
        for name in names:
            if name not in columns:
                if chosen.source:
                    hint = f"The columns are {', '.join(columns)}."
                    accepted = f"a table with the columns of {chosen.source}; the column {quoted(name)} is missing"
                    raise ConfigError(key, path, accepted, hint=hint)
                accepted = f"one of the columns of {path}: {', '.join(columns)}"
                raise ConfigError(argument, name, accepted, options=columns)
    for name in chosen.categories:
        if name not in inputs:
            raise ConfigError("categories", name, f"one of the features {', '.join(inputs)}", options=inputs)
    if both := sorted(set(targets) & set(inputs)):
        raise ConfigError("features", both[0], "columns other than the target")
    if set(group) & set(inputs):
        raise ConfigError("features", group[0], "columns other than the group")
    texts = {
        index: texts_of(frame[name])
        for index, name in enumerate(inputs)
        if name in chosen.categories or _is_text(frame[name])
    }
    gap = np.full(len(frame), np.nan)
    x = np.stack(
        [gap if index in texts else _numbers("features", name, frame[name], path) for index, name in enumerate(inputs)],
        axis=1,
    )
    if isinstance(target, str):
        y = target_column(target, frame[target], path)
    else:
        y = np.stack([_numbers("target", name, frame[name], path) for name in targets], axis=1)
    table = _checked(key, path, x, y)._replace(texts=texts, names=inputs)
    return table._replace(groups=group_numbers(group[0], frame[group[0]].to_numpy(), len(x))) if group else table


def _is_text(column: pd.Series) -> bool:
    from pandas.api.types import is_object_dtype, is_string_dtype  # type: ignore[import-untyped,unused-ignore]

    kind = getattr(column.dtype, "name", "")
    return kind == "category" or is_object_dtype(column) or is_string_dtype(column)


def group_numbers(name: str, groups: npt.NDArray[Any], rows: int) -> npt.NDArray[np.int64]:
    """Return the number of the group of each row."""
    if groups.shape != (rows,):
        raise ConfigError("group", name, f"one group per sample: [{rows}], not {list(groups.shape)}")
    return np.unique(groups.astype(str), return_inverse=True)[1].astype(np.int64)


def read_frame(key: str, file: Path) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as error:
        hint = "Install it with: pip install pandas pyarrow"
        accepted = "data in another format, because pandas, which reads .csv and .parquet files, is not installed"
        raise ConfigError(key, str(file), accepted, hint=hint) from error
    try:
        return pd.read_csv(file) if file.suffix.lower() == ".csv" else pd.read_parquet(file)
    except (ValueError, OSError, ImportError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        hint = f"Reading the file failed: {str(error).rstrip('.')}."
        raise ConfigError(key, str(file), f"a readable {file.suffix.lower()} file", hint=hint) from error


def _numbers(argument: str, name: str, column: pd.Series, file: str) -> npt.NDArray[np.float64]:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype  # type: ignore[import-untyped,unused-ignore]

    if not (is_numeric_dtype(column) or is_bool_dtype(column)):
        hint = "To exclude this column, name the columns to use: data.features=[…]." if argument == "features" else ""
        raise ConfigError(
            argument, name, f"columns of numbers, but this column has the dtype {column.dtype}", hint=hint
        )
    numbers: npt.NDArray[np.float64] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    check_column(argument, name, numbers, file, gaps=argument == "features")
    return numbers


def target_column(name: str, column: pd.Series, file: str) -> npt.NDArray[Any]:
    """Return the values of a column of targets: integers, finite numbers or strings.

    Raises:
        ConfigError: a value is missing, or beyond float32; the error names the row of `file`.
    """
    from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

    if column.isna().any():
        where = row_name(int(column.isna().to_numpy().argmax()), file, len(column))
        raise ConfigError("target", name, f"a column without missing values; in this column, {where} is empty")
    whole = is_bool_dtype(column) or is_integer_dtype(column)
    kind = np.int64 if whole else np.float64 if is_float_dtype(column) else str
    values: npt.NDArray[Any] = column.to_numpy(dtype=kind)
    check_column("target", name, values, file)
    return values


def _checked(key: str, path: str, x: npt.NDArray[Any], y: npt.NDArray[Any], target: str = "", where: str = "") -> Table:
    """Return the table of inputs and targets.

    Args:
        key, path: the argument that names the file of the inputs, and the file.
        x, y: the inputs and the targets.
        target: the name of the targets, for messages: their file, or the key in an archive.
        where: the file of the targets, for messages, if `target` does not name it.

    Raises:
        ConfigError: the arrays are not such inputs and targets.
    """
    if x.dtype.kind not in "biuf":
        raise ConfigError(key, path, f"inputs that are numbers, not {x.dtype}")
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim == 0 or x.size == 0:
        raise ConfigError(key, path, f"inputs of shape [N, …] with at least one number, not {list(x.shape)}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "biufUS" or y.ndim not in (1, 2):
        accepted = f"targets [N] or [N, D] of numbers or strings{where}, not {y.dtype} {list(y.shape)}"
        raise ConfigError("target", target, accepted)
    if len(x) != len(y):
        counts = f"{counted(len(y), 'target')} for {counted(len(x), 'input')}"
        raise ConfigError(key, path, f"as many targets as inputs, not {counts}")
    named = ((key, path, x, "inputs"), ("target", target, y, f"targets{where}"))
    for argument, given, array, what in named:
        if (place := unfit(array, gaps=array is x)) is not None:
            row = row_name(place[0], column=place[1] if array.ndim == 2 else None)
            accepted = f"finite {what} within the range of float32; {row} {what_is(array[place])}"
            raise ConfigError(argument, given, accepted)
    return Table(np.ascontiguousarray(x, dtype=np.float32), y, {}, None)
