"""File format of predictions: parquet, written batch by batch, read back as the same batches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainyard.batch import target_of
from trainyard.errors import TrainyardError, first_line

META = "trainyard"  # the entry of the file's metadata that describes how the columns make up batches
VERSION = 2
GROUP_BYTES = 1 << 22  # batches are collected up to this size and written as one row group

_AGAIN = "Run the test again to write a new file: python train.py mode=test load_from=<checkpoint>."

Array = NDArray[Any]
Kind = tuple[torch.dtype, tuple[int, ...]]
"""The dtype of a tensor, and the shape of its rows."""


class UnfitError(TrainyardError):
    """Predictions that do not fit into one column for each tensor, with a row for each sample."""


class MissingError(TrainyardError):
    """An entry was read that the file does not contain."""


class PredictionWriter:
    """Writer of a file of predictions, which holds at most `GROUP_BYTES`, or one larger batch, in memory.

    Each predicted tensor becomes a column with a row for each sample: `outputs`, or `outputs.0`, `outputs.logits` if
    the model returns a tuple or a mapping. The batch's target becomes `targets` in the same way. The column `index` is
    the number of each sample in the data set.

    Until `finish` the file has a temporary name; before the first row group there is no file.

    Args:
        path: the file to write.
        inputs: also write the rest of the batch, as `batch.0`, `batch.image`.
        max_bytes: the maximum size of all tensors together.
        index: the number of each sample in the data set, in serving order; None for 0, 1, 2, …
    """

    def __init__(
        self, path: Path, *, inputs: bool = False, max_bytes: float = math.inf, index: Sequence[int] | None = None
    ) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._inputs = inputs
        self._max_bytes = max_bytes
        self._index = index
        self._structure: dict[str, Any] | None = None
        self._kinds: dict[str, Kind] = {}
        self._sizes: list[int] = []
        self._bytes = 0
        self._gathered: list[dict[str, Array]] = []
        self._gathered_bytes = 0
        self._written_rows = 0
        self._file: Any = None

    def add(self, batch: Any, outputs: Any) -> None:
        """Add the predictions for a batch.

        Raises:
            UnfitError: they do not have a row for each sample, differ in structure from earlier ones, or are too large.
            OSError: the file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        structure = {"outputs": _flatten(outputs, "outputs", tensors), "batch": self._flatten_batch(batch, tensors)}
        if self._structure is None:
            self._structure = structure
        elif structure != self._structure:
            same = structure["outputs"] == self._structure["outputs"]
            raise UnfitError(
                f"the {'batches differ' if same else 'predictions differ between batches'} in their nesting"
            )
        lengths = {len(tensor) if tensor.ndim else None for tensor in tensors.values()}
        rows = lengths.pop() if len(lengths) == 1 else None
        if rows is None:
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
            raise UnfitError(
                f"not every tensor has a row for each sample: {shapes}"
                if tensors
                else "the predictions have no tensors"
            )
        for name, tensor in tensors.items():
            now: Kind = (tensor.dtype, tuple(tensor.shape[1:]))
            before = self._kinds.setdefault(name, now)
            if now != before:
                raise UnfitError(f"{name} of a sample is {_shown(now)} in one batch and {_shown(before)} in others")
        arrays = {name: _to_array(tensor) for name, tensor in tensors.items()}
        size = sum(array.nbytes for array in arrays.values())
        self._bytes += size
        if self._bytes > self._max_bytes:
            raise UnfitError(f"the predictions take more than {self._max_bytes / 1e6:g} MB (hook.predictions.max_mb)")
        if self._gathered and self._gathered_bytes + size > GROUP_BYTES:
            self._write_group()
        self._sizes.append(rows)
        self._gathered.append(arrays)
        self._gathered_bytes += size

    def finish(self, **facts: Any) -> None:
        """Write the remaining batches and rename the file to its final name.

        Args:
            **facts: further metadata, in plain values.

        Raises:
            UnfitError: nothing was predicted.
            OSError: the file cannot be written.
        """
        try:
            if not sum(self._sizes):
                raise UnfitError("there are no samples")
            self._write_group()
            columns = {name: [_name(dtype), shape] for name, (dtype, shape) in self._kinds.items()}
            meta = {"version": VERSION, "structure": self._structure, "columns": columns, "sizes": self._sizes, **facts}
            self._file.add_key_value_metadata({META: json.dumps(meta)})
            self._file.close()
            self._temporary.replace(self._path)
        finally:
            self.close()

    def close(self) -> None:
        """Discard an unfinished file."""
        self._gathered = []
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # for example a full disk, already reported
                file.close()
            self._temporary.unlink(missing_ok=True)

    def _write_group(self) -> None:
        """Write the collected batches as one row group."""
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
        import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

        end = sum(self._sizes)
        columns = {"index": pa.array(self._numbers(self._written_rows, end), pa.int64())}
        for name, kind in self._kinds.items():
            if _has_column(kind):
                parts = [arrays[name] for arrays in self._gathered]
                columns[name] = _to_column(parts[0] if len(parts) == 1 else np.concatenate(parts))
        table = pa.table(columns)
        if self._file is None:
            # A dictionary makes all NaNs the same. Statistics only serve queries, and no reader here makes any.
            options = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
            self._file = pq.ParquetWriter(self._temporary, table.schema, **options)
        self._file.write_table(table, row_group_size=len(table))
        self._gathered, self._gathered_bytes, self._written_rows = [], 0, end

    def _numbers(self, first: int, end: int) -> Sequence[int | None]:
        """Return the data-set numbers of these rows; None for rows beyond the index."""
        if self._index is None:
            return range(first, end)
        known = self._index[first:end]
        return [*known, *[None] * (end - first - len(known))]

    def _flatten_batch(self, batch: Any, tensors: dict[str, Tensor]) -> Any:
        try:
            target = target_of(batch)
        except TrainyardError:  # the batch has none
            target = None
        return _flatten(batch, "batch", tensors, inputs=self._inputs, target=target)


@dataclass(frozen=True)
class Predictions:
    """Predictions of one pass over a split, in a file.

    Attributes:
        path: the file.
        sizes: the number of samples in each batch.
        structure: the nesting of the tensors in a batch, and in the predictions for it.
        kinds: for each name, the dtype of the tensor and the shape of its rows.
        facts: further metadata.
    """

    path: Path
    sizes: list[int]
    structure: dict[str, Any]
    kinds: dict[str, Kind]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return sum(self.sizes)

    def batches(self, size: int | None = None) -> Iterator[tuple[Any, Any]]:
        """Yield batches and the predictions for them, as a metric's `process` takes them, on the CPU.

        They are read one row group at a time. Parts of a batch that the file does not contain are replaced by an object
        that raises a `MissingError` when it is read.

        Args:
            size: samples per batch; None for the original batches.

        Raises:
            TrainyardError: the file is damaged.
        """
        total = len(self)
        sizes = self.sizes if size is None else [min(size, total - first) for first in range(0, total, size)]
        groups = self._groups()
        held, rows = next(groups)
        for count in sizes:
            parts = [held]
            while rows < count:
                group, more = next(groups)
                parts.append(group)
                rows += more
            if len(parts) > 1:
                held = {name: torch.cat([part[name] for part in parts]) for name in self.kinds}
            batch = {name: tensor[:count] for name, tensor in held.items()}
            yield _rebuilt(self.structure["batch"], batch), _rebuilt(self.structure["outputs"], batch)
            held, rows = {name: tensor[count:] for name, tensor in held.items()}, rows - count

    def _groups(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Yield the tensors of each row group, and its number of rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number)
                    rows = file.metadata.row_group(number).num_rows
                    tensors = {name: _to_tensor(table, name, kind, rows) for name, kind in self.kinds.items()}
                    yield tensors, rows
        except (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException) as error:
            raise _damaged(self.path, error) from None

    @classmethod
    def read(cls, path: str | Path) -> Predictions:
        """Open a file; its batches are read later. No code in it is run.

        Raises:
            TrainyardError: the file is absent, damaged, or not a file of predictions.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(path)
        try:
            with path.open("rb") as file:
                zipped = file.read(4) == b"PK\x03\x04"
            if zipped:
                raise TrainyardError(
                    f"{path} is a zip archive, such as the .npz predictions of earlier versions, not a "
                    f"parquet file. {_AGAIN}"
                )
            stored = pq.read_metadata(path)
            meta = json.loads(stored.metadata[META.encode()])
            version = meta.pop("version")
            if version != VERSION:
                raise TrainyardError(
                    f"{path} has version {version!r} of the format, but version {VERSION} is required. {_AGAIN}"
                )
            structure, sizes = meta.pop("structure"), meta.pop("sizes")
            kinds = {name: (_dtype(dtype), tuple(shape)) for name, (dtype, shape) in meta.pop("columns").items()}
            for entry in (structure["batch"], structure["outputs"]):
                _rebuilt(entry, dict.fromkeys(kinds, torch.empty(0)))
            if not sum(sizes) == stored.num_rows > 0:
                raise ValueError(f"{sum(sizes)} samples in batches, {stored.num_rows} rows")
        except FileNotFoundError:
            raise TrainyardError(f"{path} does not exist.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise _damaged(path, error) from None
        return cls(path, sizes, structure, kinds, meta)


def join(parts: Sequence[Predictions], writer: PredictionWriter) -> None:
    """Pass the batches of a run's ranks to `writer` in turn: the first of each, the second of each, and so on."""
    ends = object()
    iterators = [part.batches() for part in parts]
    for turn in zip_longest(*iterators, fillvalue=ends):
        for batch in turn:
            if batch is not ends:
                writer.add(*batch)


class _Absent:
    """Stands for a part of a batch that is not in the file."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked up by Python and its libraries on any object
            raise AttributeError(name)
        raise self._missing()

    def __getitem__(self, key: Any) -> Any:
        raise self._missing()

    def __iter__(self) -> Iterator[Any]:
        raise self._missing()

    def __len__(self) -> int:
        raise self._missing()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self._missing()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        raise next(value for value in given if isinstance(value, cls))._missing()

    def _missing(self) -> MissingError:
        then = "The file contains only tensors."
        if self.place.partition(".")[0] == "batch":
            then = "Set hook.predictions.inputs=true in the run to save all tensors of a batch, not only the target."
        return MissingError(f"the metric reads {self.place}, which the file does not contain. {then}")


def _flatten(value: Any, name: str, tensors: dict[str, Tensor], *, inputs: bool = True, target: Any = None) -> Any:
    """Return the nesting of `value` in plain values; its tensors go into `tensors`, under their names."""
    if target is not None and value is target:
        return _flatten(value, "targets", tensors)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UnfitError(f"{name} has keys that are not strings")
        items = value.items()
        return {
            "dict": {key: _flatten(item, f"{name}.{key}", tensors, inputs=inputs, target=target) for key, item in items}
        }
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        entries = enumerate(value)
        return {kind: [_flatten(item, f"{name}.{i}", tensors, inputs=inputs, target=target) for i, item in entries]}
    if isinstance(value, Tensor) and inputs:
        if name in tensors:
            raise UnfitError(f"two tensors have the name {name}")
        tensors[name] = value
        return {"tensor": name}
    return None if value is None else {"absent": name}


def _rebuilt(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    if structure is None:
        return None
    ((kind, value),) = structure.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "dict":
            return {key: _rebuilt(entry, tensors) for key, entry in value.items()}
        case "tuple":
            return tuple(_rebuilt(entry, tensors) for entry in value)
        case "list":
            return [_rebuilt(entry, tensors) for entry in value]
    return _Absent(value)


def _damaged(path: Path, error: Exception) -> TrainyardError:
    return TrainyardError(f"{path} is not a predictions file, or it is damaged ({first_line(error)}). {_AGAIN}")


def _shown(kind: Kind) -> str:
    return f"{_name(kind[0])} {list(kind[1])}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch has no dtype {name}")
    return found


def _has_column(kind: Kind) -> bool:
    """Return whether a row has any entries: parquet has no lists of length 0."""
    return math.prod(kind[1]) > 0


def _is_widened(dtype: torch.dtype) -> bool:
    """Return whether parquet lacks this floating-point type; it is then stored as float32, without loss."""
    return dtype.is_floating_point and dtype.itemsize < 4 and dtype != torch.float16


def _to_array(tensor: Tensor) -> Array:
    """Return a copy of a tensor in a form that parquet can store; a complex number becomes two numbers."""
    try:
        tensor = tensor.detach()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        elif _is_widened(tensor.dtype):
            tensor = tensor.float()
        array: Array = tensor.to("cpu", copy=True).numpy(force=True)
    except (TypeError, RuntimeError) as error:  # a sparse tensor, for example
        raise UnfitError(f"a tensor cannot be converted to an array ({error})") from None
    return array


def _to_column(array: Array) -> Any:
    """Return the rows as numbers, or as lists of numbers."""
    import pyarrow as pa

    flat = pa.array(array.reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, math.prod(array.shape[1:]))


def _to_tensor(table: Any, name: str, kind: Kind, rows: int) -> Tensor:
    """Return the tensor `[rows, ...]` of a column: the reverse of `_to_array` and `_to_column`."""
    dtype, shape = kind
    if not _has_column(kind):
        return torch.empty((rows, *shape), dtype=dtype)
    column = table.column(name).combine_chunks()
    stored = (rows, *shape, 2) if dtype.is_complex else (rows, *shape)
    flat = column if len(stored) == 1 else column.flatten()
    tensor = torch.from_numpy(np.array(flat.to_numpy(zero_copy_only=False)).reshape(stored))
    if dtype.is_complex:
        return torch.view_as_complex(tensor)
    if dtype == torch.bfloat16:  # the upper half of float32's bits; a conversion would make all NaNs the same
        return (tensor.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    return tensor.to(dtype)
