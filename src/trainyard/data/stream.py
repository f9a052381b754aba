"""Stream of shards: files of any length, read one after another."""

from __future__ import annotations

import glob
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainyard.checks import boolean, choice, integer, seed_number
from trainyard.data.array_data import input_spec
from trainyard.data.arrays import REGRESSION_LOSS
from trainyard.data.base import Data, size_for_evaluation
from trainyard.data.lengths import ended_early
from trainyard.data.tables import Columns, Table, read_frame, read_tables
from trainyard.errors import ConfigError, FindingError
from trainyard.models.table_encoder import row_name
from trainyard.rng import generator

SUFFIXES = (".npz", ".parquet", ".csv")
_KEYS = {"train": "shards", "val": "val_shards", "test": "test_shards"}
"""Argument that names the shards of each split."""


class Stream(Data):
    """Shards that are read one after another: `.npz` with `x` and `y`, `.parquet` or `.csv`.

    A batch is `(x, y)`: x float32 `[B, ...]`; y int64 `[B]`, classes `0..num_classes-1`, or for regression float32. A
    batch can contain rows of several shards. In training, the order of the shards is drawn from (seed, epoch), and the
    order of the rows of each shard from (seed, epoch, shard). A resumed run continues at its batch, and does not read
    earlier shards.

    Args:
        shards: a pattern such as `train/*.npz`, or a list of files, for training.
        val_shards, test_shards: the same for validation and test, read in order; None: the split does not exist.
        target, features: see `Arrays`.
        num_classes: the number of classes. None for regression.
        shuffle: draw the order of shards and rows in training; otherwise training also reads them in order.
        batch_size, eval_batch_size, drop_last: see `ArrayData`.

    Raises:
        ConfigError: there is no shard, a shard cannot be read, a column contains strings, or another value is invalid.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        val_shards: str | Sequence[str] | None = None,
        test_shards: str | Sequence[str] | None = None,
        target: str | Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        num_classes: int | None = None,
        shuffle: bool = True,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.batch_size = integer("batch_size", batch_size, at_least=1)
        self.eval_batch_size = size_for_evaluation(eval_batch_size, self.batch_size)
        self.shuffle = boolean("shuffle", shuffle)
        self.drop_last = boolean("drop_last", drop_last)
        self.classes = (
            None
            if num_classes is None
            else integer("num_classes", num_classes, at_least=1, other="null for regression")
        )
        self.columns = Columns.of(target, features)
        given = (shards, val_shards, test_shards)
        self.shards = {
            split: _files(key, files)
            for (split, key), files in zip(_KEYS.items(), given, strict=True)
            if files is not None or split == "train"
        }
        self.splits = tuple(self.shards)
        first = next((file for file in self.shards["train"] if _rows("shards", file)), None)
        if first is None:
            raise ConfigError("shards", shards, "shards with at least one row")
        table = read_shard("shards", first, self.columns, self.classes)
        every = [file for files in self.shards.values() for file in files]
        self.columns = self.columns._replace(source=first)
        self.shapes = table.x.shape[1:], table.y.shape[1:]
        if table.names is not None and not any(file.lower().endswith(".npz") for file in every):
            self.columns = self.columns._replace(features=table.names)  # the same columns, in this order, in each shard
        self.spec = dict(input_spec(table.x.shape[1:]))
        if self.classes is None:
            self.spec |= {"out_features": 1 if table.y.ndim == 1 else table.y.shape[1], "loss": dict(REGRESSION_LOSS)}
        else:
            self.spec["num_classes"] = self.classes

    def loader(self, split: str, *, seed: int, device: torch.device) -> ShardLoader:
        """Return the loader of `split`."""
        choice("split", split, self.splits)
        train = split == "train"
        return ShardLoader(
            self.shards[split],
            self.columns,
            self.classes,
            self.batch_size if train else self.eval_batch_size,
            shuffle=train and self.shuffle,
            drop_last=train and self.drop_last,
            seed=seed,
            device=device,
            key=_KEYS[split],
            shapes=self.shapes,
        )


class ShardLoader:
    """Loader of shards, without a length.

    Args:
        shards: files.
        columns, classes: see `read_shard`.
        batch_size, shuffle, drop_last, seed, device: see `TensorLoader`.
        key: the argument that names the shards, for errors.
        shapes: the shapes of an input and of a target; None: any.
    """

    def __init__(
        self,
        shards: Sequence[str],
        columns: Columns,
        classes: int | None,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        key: str = "shards",
        shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> None:
        self.shards = list(shards)
        self.shapes = shapes
        self.key = key
        self.columns = columns
        self.classes = classes
        self.batch_size = integer("batch_size", batch_size, at_least=1)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed_number("seed", seed)
        self.device = torch.device(device)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of `epoch` from batch number `start` on.

        Raises:
            TrainyardError: there are fewer than `start` batches, or a shard cannot be read.
        """
        size = self.batch_size
        held: list[tuple[Tensor, Tensor]] = []
        count = 0
        for x, y in self._tables(epoch, start):
            held.append((x, y))
            count += len(x)
            if count < size:
                continue
            whole = [torch.cat(parts) for parts in zip(*held, strict=True)]
            for first in range(0, count - count % size, size):
                yield tuple(part[first : first + size].to(self.device) for part in whole)
            held = [(whole[0][count - count % size :], whole[1][count - count % size :])]
            count %= size
        if count and not self.drop_last:
            yield tuple(torch.cat(parts).to(self.device) for parts in zip(*held, strict=True))

    def _tables(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of the shards, in the order of the epoch, without those before batch `start`."""
        skipped, wanted = 0, start * self.batch_size
        order = np.arange(len(self.shards))
        if self.shuffle:
            order = generator(self.seed, "shards", epoch).permutation(len(order))
        for shard in order.tolist():
            rows = _rows(self.key, self.shards[shard])
            if skipped + rows <= wanted:
                skipped += rows
                continue
            table = self._read(self.shards[shard])
            own: npt.NDArray[np.int64] = np.arange(rows)
            if self.shuffle:
                own = generator(self.seed, "rows", epoch, shard).permutation(rows)
            own, skipped = own[wanted - skipped :], wanted
            yield torch.from_numpy(table.x[own]), torch.from_numpy(table.y[own])
        if skipped < wanted - self.batch_size * (wanted > 0) or (skipped < wanted and self.drop_last):
            raise ended_early(skipped // self.batch_size, start, f"data.{self.key}")

    def _read(self, path: str) -> Table:
        table = read_shard(self.key, path, self.columns, self.classes)
        for what, array, shape in zip(("inputs", "targets"), (table.x, table.y), self.shapes or (), strict=False):
            if array.shape[1:] != shape:
                accepted = (
                    f"{what} of shape {['N', *shape]}, as in {self.columns.source}, not {['N', *array.shape[1:]]}"
                )
                raise ConfigError(self.key, path, accepted.replace("'N'", "N"))
        return table


def read_shard(key: str, path: str, columns: Columns, classes: int | None) -> Table:
    """Return the rows of a shard: y int64 with a number of classes, float32 without.

    Args:
        key: the argument that names the shard, for errors.
        path: the shard.
        columns: the selected columns.
        classes: the number of classes; None for regression.

    Raises:
        ConfigError: the shard cannot be read, contains strings or missing values, or its targets are not such classes.
    """
    table = next(iter(read_tables(key, path, columns).values()))
    if table.texts:
        name = (table.names or [])[next(iter(table.texts))]
        hint = "In a stream, categories and text must be numbers, because their values are not known in advance."
        raise ConfigError("features", name, "columns of numbers", hint=hint)
    if np.isnan(table.x).any():
        row = int(np.isnan(table.x).reshape(len(table.x), -1).any(axis=1).argmax())
        where = row_name(row, path, len(table.x))
        raise ConfigError(key, path, f"rows without missing values; {where} has a missing value")
    if classes is None:
        if table.y.dtype.kind not in "biuf":
            hint = "For classification, number the classes from 0, and set data.num_classes."
            accepted = f"numbers in {path}, because data.num_classes=null selects regression"
            raise FindingError("target", "the targets are strings", accepted, hint=hint)
        return table._replace(y=table.y.astype(np.float32))
    if table.y.dtype.kind not in "biu" or table.y.ndim != 1 or table.y.min() < 0 or table.y.max() >= classes:
        found = "the targets are strings"
        if table.y.ndim != 1:
            found = f"there are {table.y.shape[1]} targets per row"
        elif table.y.dtype.kind in "biuf":
            found = f"the targets are values from {table.y.min()} to {table.y.max()}"
        accepted = f"one class per row, an integer from 0 to {classes - 1} (data.num_classes), in {path}"
        raise FindingError("target", found, accepted)
    return table._replace(y=table.y.astype(np.int64))


def _files(key: str, given: object) -> list[str]:
    other = "" if key == _KEYS["train"] else ", or null"
    accepted = f"a pattern that matches files, such as train/*.npz, or a list of existing files{other}"
    patterns = [given] if isinstance(given, str) else given
    if (
        not isinstance(patterns, list | tuple)
        or not patterns
        or not all(isinstance(each, str) and each for each in patterns)
    ):
        raise ConfigError(key, given, accepted)
    found: list[str] = []
    for pattern in patterns:
        files = sorted(glob.glob(str(Path(pattern).expanduser())))  # noqa: PTH207 (a pattern may be absolute)
        if not files:
            raise ConfigError(key, pattern, accepted)
        found += files
    for file in found:
        if not file.lower().endswith(SUFFIXES):
            raise ConfigError(key, file, f"files whose names end in one of {', '.join(SUFFIXES)}")
    return found


def _rows(key: str, path: str) -> int:
    """Return the number of rows of a shard, from its header if it has one."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            return int(pq.read_metadata(path).num_rows)
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive, archive.open("x.npy") as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape: Any = read(member)[0]
                return int(shape[0])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error.args[0] if isinstance(error, KeyError) else error)  # str() of a KeyError quotes its text
        hint = f"Reading the file failed: {reason.rstrip('.')}."
        accepted = f"a readable {suffix} file{' with the inputs under x' if suffix == '.npz' else ''}"
        raise ConfigError(key, path, accepted, hint=hint) from error
    return len(read_frame(key, Path(path)))
