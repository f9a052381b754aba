"""Predictions in a file: written batch by batch, read back as the batches that they were. See docs/evaluation.md."""

from __future__ import annotations

import json
import math
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainyard.batch import target_of
from trainyard.errors import TrainyardError

FORMATS = ("npz", "parquet")
META = "trainyard"  # the entry that says how the arrays make up batches
VERSION = 1

Array = NDArray[Any]


class UnfitError(TrainyardError):
    """Predictions that do not fit into one array a tensor, with a row for each sample."""


class MissingError(TrainyardError):
    """Something was read that the file does not hold."""


@dataclass
class _Column:
    """The rows of one tensor, as they come, in a file without a name."""

    file: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of a row
    rows: int = 0

    def add(self, name: str, array: Array) -> None:
        if (array.dtype, array.shape[1:]) != (self.dtype, self.shape):
            now, before = f"{array.dtype} {list(array.shape[1:])}", f"{self.dtype} {list(self.shape)}"
            raise UnfitError(f"{name} of a sample is {now} in one batch and {before} in others")
        self.file.write(array.tobytes())
        self.rows += len(array)

    def array(self) -> Array:
        """All rows, read from the file as they are needed."""
        self.file.flush()
        shape = (self.rows, *self.shape)
        return np.memmap(self.file, self.dtype, "r", shape=shape) if math.prod(shape) else np.empty(shape, self.dtype)


class PredictionWriter:
    """Gathers predictions on disk, so that in memory there is no more than one batch.

    Each tensor that the model predicts becomes an array with a row for each sample: `outputs`, or `outputs.0`,
    `outputs.logits` where it predicts a tuple or a mapping. The batch's target becomes `targets` in the same way.
    Floating-point numbers narrower than float32 are widened to it, which changes none.

    Args:
        folder: where to gather; what lies there meanwhile has no name.
        inputs: take the rest of the batch too, as `batch.0`, `batch.image`.
        max_bytes: how much to take.
    """

    def __init__(self, folder: Path, *, inputs: bool = False, max_bytes: float = math.inf) -> None:
        self._folder = folder
        self._inputs = inputs
        self._max_bytes = max_bytes
        self._columns: dict[str, _Column] = {}
        self._structure: dict[str, Any] | None = None
        self._sizes: list[int] = []
        self._bytes = 0

    def add(self, batch: Any, outputs: Any) -> None:
        """Takes the predictions for a batch.

        Raises:
            UnfitError: they have no row for each sample, or not the structure of those before; or there are too many.
        """
        tensors: dict[str, Tensor] = {}
        structure = {"outputs": _flatten(outputs, "outputs", tensors), "batch": self._flatten_batch(batch, tensors)}
        if self._structure is None:
            self._structure = structure
        elif structure != self._structure:
            raise UnfitError("batches differ in how they are nested")
        lengths = {name: len(tensor) if tensor.ndim else None for name, tensor in tensors.items()}
        if None in lengths.values() or len(set(lengths.values())) != 1:
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
            raise UnfitError(f"not every tensor has a row for each sample: {shapes or 'there is none'}")
        self._bytes += sum(tensor.numel() * max(tensor.itemsize, 4) for tensor in tensors.values())
        if self._bytes > self._max_bytes:
            raise UnfitError(f"they take more than {self._max_bytes / 1e6:.0f} MB")
        for name, tensor in tensors.items():
            array = _array(tensor)
            if name not in self._columns:
                file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed with this object)
                self._columns[name] = _Column(file, array.dtype, array.shape[1:])
            self._columns[name].add(name, array)
        self._sizes += [length for length in lengths.values() if length is not None][:1]

    def finish(self, path: Path, *, index: Sequence[int] | None = None, **facts: Any) -> None:
        """Writes the file, in one move.

        Args:
            path: its ending says in which format, `.npz` or `.parquet`.
            index: the number of each sample in the data set, in the order in which they came; None: 0, 1, 2, …
            **facts: what else to note, in plain values.

        Raises:
            UnfitError: nothing was predicted, or the format does not take it.
        """
        rows = sum(self._sizes)
        if not rows:
            raise UnfitError("there is no sample")
        known = index is not None and len(index) == rows and all(type(number) is int for number in index)
        numbers = np.array(index if known else range(rows), np.int64)
        arrays = {"index": numbers, **{name: column.array() for name, column in self._columns.items()}}
        meta = {"version": VERSION, "structure": self._structure, "sizes": self._sizes, **facts}
        temporary = path.with_name(f".{path.name}")
        try:
            if path.suffix == ".npz":
                _write_npz(temporary, arrays, meta)
            else:
                _write_parquet(temporary, arrays, meta)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Throws away what was gathered."""
        for column in self._columns.values():
            column.file.close()
        self._columns = {}

    def _flatten_batch(self, batch: Any, tensors: dict[str, Tensor]) -> Any:
        try:
            target = target_of(batch)
        except TrainyardError:  # it has none
            target = None
        return _flatten(batch, "batch", tensors, inputs=self._inputs, target=target)


@dataclass
class Predictions:
    """The predictions of one pass over a split.

    Attributes:
        arrays: by name, with a row for each sample: `outputs…`, `targets…`, `batch…`, and `index`, its number in the
            data set.
        sizes: samples in each batch.
        facts: what was noted beside them.
    """

    arrays: dict[str, Array]
    sizes: list[int]
    structure: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(self.sizes)

    def batches(self, size: int | None = None) -> Iterator[tuple[Any, Any]]:
        """Batches and the predictions for them, as a metric's `process` takes them, on the CPU.

        What is not in the file of a batch has a stand-in there; to read from it raises a `MissingError`.

        Args:
            size: samples in each; None: the batches that they were.
        """
        sizes = self.sizes if size is None else [size] * -(-len(self) // size)
        first = 0
        for count in sizes:
            part = {name: torch.from_numpy(array[first : first + count]) for name, array in self.arrays.items()}
            yield _rebuilt(self.structure["batch"], part), _rebuilt(self.structure["outputs"], part)
            first += count

    @classmethod
    def read(cls, path: str | Path) -> Predictions:
        """The predictions in a file.

        Raises:
            TrainyardError: there is none, it is damaged, or it is something else.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                parquet = file.read(4) == b"PAR1"
            arrays, meta = _read_parquet(path) if parquet else _read_npz(path)
            version, structure, sizes = meta.pop("version"), meta.pop("structure"), meta.pop("sizes")
        except FileNotFoundError:
            raise TrainyardError(f"{path}: there is no such file.") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise TrainyardError(f"{path} is no file of predictions, or a damaged one ({error!r}).") from None
        if version != VERSION:
            raise TrainyardError(f"{path} has the version {version} of the format; this trainyard reads {VERSION}.")
        return cls(arrays, sizes, structure, meta)


def join(parts: Sequence[Predictions], writer: PredictionWriter) -> None:
    """Gives `writer` the batches of the ranks of a run, which took turns: the first of each, the second of each, …"""
    ends = object()
    iterators = [part.batches() for part in parts]
    for turn in zip_longest(*iterators, fillvalue=ends):
        for batch in turn:
            if batch is not ends:
                writer.add(*batch)


class _Absent:
    """Stands in a batch for what is not in the file."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python and its libraries ask of anything
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
        return MissingError(
            f"it reads {self.place}, which the file does not hold: of a batch only the target is written, unless "
            f"hook.predictions.inputs=true."
        )


def _flatten(value: Any, name: str, tensors: dict[str, Tensor], *, inputs: bool = True, target: Any = None) -> Any:
    """How `value` is nested, in plain values; its tensors go into `tensors`, under their names."""
    if target is not None and value is target:
        return _flatten(value, "targets", tensors)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UnfitError(f"{name} has keys that are no text")
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


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.itemsize < 4:
        tensor = tensor.float()
    try:
        array: Array = tensor.cpu().numpy()
    except (TypeError, RuntimeError) as error:  # a sparse one, say
        raise UnfitError(f"a tensor that is no array ({error})") from None
    return array


def _write_npz(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **{**arrays, META: np.array(json.dumps(meta))})  # type: ignore[arg-type]


def _read_npz(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("a lone array")
    with file:
        arrays = {name: file[name] for name in file.files}
    meta: dict[str, Any] = json.loads(str(arrays.pop(META)))
    return arrays, meta


def _write_parquet(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """A column for each array; a row that is no number is a list of numbers, whose shape is in the metadata."""
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    shapes = {name: list(array.shape[1:]) for name, array in arrays.items()}
    try:
        table = pa.table({name: _to_arrow(array) for name, array in arrays.items()})
        pq.write_table(table.replace_schema_metadata({META: json.dumps({"shapes": shapes, **meta})}), path)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise UnfitError(f"parquet does not take them ({error})") from None


def _to_arrow(array: Array) -> Any:
    import pyarrow as pa

    flat = pa.array(array.reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, math.prod(array.shape[1:]))


def _read_parquet(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    meta: dict[str, Any] = json.loads(table.schema.metadata[META.encode()])
    shapes = meta.pop("shapes")
    arrays = {}
    for name, shape in shapes.items():
        column = table.column(name).combine_chunks()
        flat = column.flatten() if shape else column
        arrays[name] = np.array(flat.to_numpy(zero_copy_only=False)).reshape(-1, *shape)
    return arrays, meta
