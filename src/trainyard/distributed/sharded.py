"""Checkpoints of sharded tensors: each rank writes its share, and any number of ranks can read them."""

from __future__ import annotations

import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read_shares
from torch.distributed.checkpoint.state_dict_saver import save as write_shares
from torch.distributed.tensor import DTensor

from trainyard.files import put

REST = "rest.pt"
"""File of the part that is not sharded: the nest, with a reference for each sharded tensor, and the checksums of the
files."""

_KEY = "sharded tensor"


def save(folder: Path, state: dict[str, Any], group: dist.ProcessGroup) -> None:
    """Write a sharded state, of which every rank has a part, into a folder with `torch.distributed.checkpoint`.

    Called on every rank. Nothing is gathered. The folder gets its final name when it is complete.

    Args:
        folder: on a file system that all ranks see; an existing one is replaced.
        state: the same nest on every rank; tensors that are not sharded are written by rank 0.
        group: a process group for CPU tensors, which is not used for anything else at the same time.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    main = dist.get_rank(group) == 0
    if main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier(group)
    tensors: dict[str, Tensor] = {}
    rest = _without_sharded(state, "", tensors)
    write_shares(tensors, checkpoint_id=temporary, process_group=group)
    own = {file.name: _checksum(file) for file in temporary.glob(f"__{dist.get_rank(group)}_*")}
    found: list[dict[str, int] | None] = [None] * dist.get_world_size(group)
    dist.gather_object(own, found if main else None, 0, group)
    if main:
        files = {name: crc for part in found if part for name, crc in part.items()}
        files[".metadata"] = _checksum(temporary / ".metadata")
        torch.save({"rest": rest, "files": files}, temporary / REST)
        put(temporary, folder)
    dist.barrier(group)


def load(folder: Path) -> dict[str, Any]:
    """Return the complete state, with its tensors on the CPU; each process reads it independently of other ranks.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file was changed after it was written.
    """
    written = torch.load(folder / REST, map_location="cpu", weights_only=True)
    for name, checksum in written["files"].items():
        if _checksum(folder / name) != checksum:
            raise ValueError(f"the checksum of {name} does not match")
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # this is intended
        read_shares(tensors, checkpoint_id=folder, no_dist=True)
    state: dict[str, Any] = _with_sharded(written["rest"], tensors)
    return state


def _without_sharded(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, DTensor):
        tensors[key] = value
        return {_KEY: key}
    if isinstance(value, Mapping):
        return {name: _without_sharded(entry, f"{key}.{name}", tensors) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_sharded(entry, f"{key}.{index}", tensors) for index, entry in enumerate(value))
    return value


def _with_sharded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_KEY}:
            return tensors[value[_KEY]]
        return {name: _with_sharded(entry, tensors) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_sharded(entry, tensors) for entry in value)
    return value


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum
