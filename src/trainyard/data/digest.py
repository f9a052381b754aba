"""Digests of data, which identify the data of a run and show whether another run has the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from trainyard.data.array_data import ArrayData
from trainyard.data.base import Data
from trainyard.data.loaders import Loaders

WHOLE = 1 << 28
"""Arrays of up to this many bytes are read completely; of larger ones, `BLOCKS` equally spaced blocks are read."""
BLOCKS, BLOCK = 256, 1 << 20

_NUMBERS = ("indices", "numbers")  # of the samples that a set takes of another
Covers = Literal["content", "files"]


@dataclass(frozen=True)
class Digest:
    """Digest of one data set.

    Attributes:
        name: the name of the set: `train`, `val/easy`.
        digest: 32 hex digits.
        covers: `content` (shapes, types and numbers) or `files` (names, sizes and targets).
        rows: the number of samples; None if unknown.
        shapes: the shapes in one sample, by index or name.
    """

    name: str
    digest: str
    covers: Covers
    rows: int | None
    shapes: dict[str, str]


def digests(data: Data | None) -> list[Digest]:
    """Return the digest of each set of the data that can be read without creating its samples.

    These are sets of tensors, lists of files, and data sets of torch and torchvision that contain arrays. Streams and
    data sets that compute their samples have no digest.

    Example:
        >>> from trainyard.data import Digits
        >>> [(each.name, each.rows, each.shapes) for each in digests(Digits())][0]
        ('train', 1258, {'0': 'float32 [1, 8, 8]', '1': 'int64 []'})
    """
    if isinstance(data, ArrayData):
        sources: Mapping[str, Any] = data.sources
    elif isinstance(data, Loaders):
        loaders = data.loaders.items()
        sources = {split: loader.dataset for split, loader in loaders if isinstance(loader, DataLoader)}
    else:
        return []
    found = ((split, source, _parts(source)) for split, source in sources.items())
    return [_digest(split, parts, _rows(source)) for split, source, parts in found if _readable(parts)]


def _rows(source: Any) -> int | None:
    return len(source) if isinstance(source, Dataset) and hasattr(source, "__len__") else None


def _readable(parts: Mapping[str, Any]) -> bool:
    return bool(parts) and all(_as_array(value) is not None or _is_files(value) for value in parts.values())


def _is_files(value: Any) -> bool:
    """Return whether this is a list of paths, or of pairs of a path and a target."""
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first[0] if isinstance(first, list | tuple) and first else first, str | Path)


def _parts(source: Any) -> dict[str, Any]:
    """Return the content of a set: arrays and lists of files, by name; empty if it is unknown."""
    if isinstance(source, Mapping):
        return {str(name): value for name, value in source.items()}
    if isinstance(source, list | tuple):
        return {str(place): value for place, value in enumerate(source)}
    if isinstance(source, Subset):
        inner = _parts(source.dataset)
        return inner and inner | {_NUMBERS[0]: np.asarray(source.indices)}
    if not isinstance(source, Dataset):
        return {}
    if isinstance(tensors := getattr(source, "tensors", None), tuple):
        return {str(place): value for place, value in enumerate(tensors)}
    within = getattr(source, "part", None) or getattr(source, "dataset", None)
    if isinstance(within, Dataset):
        numbers = getattr(source, "numbers", None)
        held = _parts(within)
        return held and held | ({} if numbers is None else {_NUMBERS[1]: np.asarray(numbers)})
    names = ("data", "paths", "samples", "targets", "labels", "y")
    found = {name: getattr(source, name) for name in names if hasattr(source, name)}
    return found if {"data", "paths", "samples"} & found.keys() else {}


def _digest(name: str, parts: Mapping[str, Any], rows: int | None) -> Digest:
    hashed = hashlib.sha256()
    covers: Covers = "content"
    shapes = {}
    for key, value in parts.items():
        hashed.update(key.encode())
        array = _as_array(value)
        if array is not None:
            hashed.update(f"{array.dtype} {array.shape}".encode())
            for block in _blocks(array):
                hashed.update(block)
            if array.ndim and key not in _NUMBERS:
                shapes[key] = f"{array.dtype} {list(array.shape[1:])}"
                rows = len(array) if rows is None else rows
        else:
            covers, rows = "files", len(value) if rows is None else rows
            for line in _files(value):
                hashed.update(line.encode(errors="surrogateescape"))
    return Digest(name, hashed.hexdigest()[:32], covers, rows, shapes)


def _as_array(value: Any) -> np.ndarray[Any, Any] | None:
    """Return numbers as an array that shares their memory; None for anything else."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.dtype is torch.bfloat16:
            value = value.view(torch.int16)
        return np.asarray(value.cpu().numpy())
    if isinstance(value, list | np.ndarray):
        array = np.asarray(value) if isinstance(value, np.ndarray) or _is_numbers(value) else None
        return array if array is not None and array.dtype.kind in "biuf" else None
    return None


def _is_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values[:1])


def _blocks(array: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    """Yield the bytes of an array, or a part of them if the array is large: see `WHOLE`."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if flat.nbytes <= WHOLE:
        yield flat.data
        return
    last = flat.nbytes - BLOCK
    for place in range(BLOCKS):
        start = last * place // (BLOCKS - 1)
        yield flat[start : start + BLOCK].data


def _files(values: Any) -> Iterator[str]:
    """Yield a line for each entry of a list of paths, or of pairs of a path and a target."""
    root: Path | None = None
    for value in values:
        path, *rest = value if isinstance(value, list | tuple) else (value,)
        file = Path(str(path))
        root = root or file.parent.parent  # a folder for each class: the same data elsewhere have the same digest
        shown = file.relative_to(root) if file.is_relative_to(root) else file
        try:
            size = file.stat().st_size
        except OSError:
            size = -1
        yield f"{shown} {size} {rest}\n"
