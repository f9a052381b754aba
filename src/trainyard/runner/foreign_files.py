"""Files of weights that other programs wrote: safetensors, folders of Hugging Face, and files with objects in them."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from trainyard.models.libraries import library
from trainyard.runner import checkpoint
from trainyard.runner.checkpoint import DamagedCheckpointError

log = logging.getLogger(__name__)

SAFE = ".safetensors"
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in a folder that `save_pretrained` wrote; each can be split into several files, which an index
lists."""


class Skipped:
    """Placeholder for an object in a file. The class of the object is not imported, and none of its code runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read(path: Path) -> Any:
    """Return the content of a file, or the tensors of the files of a folder, by name.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedCheckpointError: a file is truncated or modified, or contains objects that cannot be skipped.
        ConfigError: the file is a safetensors file, and safetensors is not installed.
    """
    if path.is_dir() and (files := _files(path)):
        absent = next((file for file in files if not file.is_file()), None)
        if absent is not None:
            raise DamagedCheckpointError(f"{path} is not complete: its index lists {absent.name}, which does not exist")
        return {name: tensor for file in files for name, tensor in _tensors(file).items()}
    if path.is_dir():
        from trainyard.distributed import sharded  # the import takes a second

        if not (path / sharded.REST).exists():
            reason = f"contains neither a sharded checkpoint ({sharded.REST}) nor weights ({' or '.join(IN_FOLDER)})"
            raise checkpoint.no_checkpoint(path, reason)
    if path.suffix == SAFE:
        return _safetensors(path)
    try:
        return checkpoint.read(path)
    except DamagedCheckpointError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        return _without_objects(path, error)


def _files(folder: Path) -> list[Path]:
    for name in IN_FOLDER:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            return [folder / file for file in _listed(index)]
    return []


def _listed(index: Path) -> list[str]:
    """Return the names of the files that an index lists.

    Raises:
        DamagedCheckpointError: the index lists no files.
    """
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{index} cannot be read ({error})") from error
    tensors = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(file, str) for file in tensors.values()):
        raise DamagedCheckpointError(f"{index} has no mapping from tensors to files under 'weight_map'")
    return sorted(set(tensors.values()))


def _tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of one of the files of a folder, by name."""
    content = read(file)
    if not isinstance(content, dict):
        raise DamagedCheckpointError(f"{file} contains no named tensors")
    return content


def _safetensors(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(path)
    safetensors = library("safetensors", "safetensors", "load_from")
    load = library("safetensors.torch", "safetensors", "load_from").load_file
    try:
        tensors: dict[str, Any] = load(path)
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path} is not a complete safetensors file ({error})") from error
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({error})") from error
    return tensors


def _without_objects(path: Path, refusal: DamagedCheckpointError) -> Any:
    """Read a torch file with placeholders for objects that are neither tensors nor plain values."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError):  # a file of torch before 1.6
        raise refusal from None
    standins = [(type(name.rpartition(".")[2], (Skipped,), {}), name) for name in names]
    try:
        with torch.serialization.safe_globals(standins):  # type: ignore[arg-type] # torch names pairs in its docs
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # an object that is built in yet another way
        raise refusal from None
    log.info("Skipped objects in %s that are neither tensors nor plain values: %s.", path, ", ".join(names))
    return state
