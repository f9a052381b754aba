"""Export of a run's model: weights as safetensors, the config, and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainyard.errors import ConfigError
from trainyard.files import put, writing
from trainyard.models.libraries import library
from trainyard.run.record import CONFIG
from trainyard.runner import checkpoint
from trainyard.runner.foreign_files import SAFE

WEIGHTS = f"model{SAFE}"
CARD = "README.md"


def export(work_dir: Path, file: Path, folder: Path, card: str) -> list[Path]:
    """Write a model into a folder from which `trainyard.load` and `load_from=` read it.

    Args:
        work_dir: the run's directory, with its config.
        file: the checkpoint, whose evaluated weights are used: with EMA, the averaged weights.
        folder: the output folder, which is created; it must be empty.
        card: the text of the model card.

    Returns:
        The files.

    Raises:
        ConfigError: the folder is not empty, the checkpoint is damaged, or safetensors is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("--to", str(folder), "a folder that is empty, or does not exist yet")
    library("safetensors", "safetensors", "export")
    save_file = library("safetensors.torch", "safetensors", "export").save_file
    _, state = checkpoint.given("--checkpoint", file, checkpoint.read)
    weights = _unshared(state.get("eval_model", state["model"]))
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{WEIGHTS}.tmp"
    with writing(folder / WEIGHTS, part, "repeat the command"):
        save_file(weights, part, metadata={"format": "pt"})
        put(part, folder / WEIGHTS)
    shutil.copyfile(work_dir / CONFIG, folder / CONFIG)
    (folder / CARD).write_text(card, encoding="utf-8")
    return [folder / name for name in (WEIGHTS, CONFIG, CARD)]


def _unshared(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors that do not share memory, as the format requires; tied weights are written twice."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
