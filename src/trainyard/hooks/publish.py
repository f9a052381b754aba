"""Weights alone, in a file that is named after its contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trainyard.runner import checkpoint


def publish(source: Path, directory: Path, stem: str) -> Path:
    """Write the weights that a checkpoint was evaluated with as `<directory>/<stem>-<hash>.pt`.

    The hash is the first 8 hex digits of the file's SHA-256, which `torch.hub` checks (`check_hash=True`). What was
    published under the same stem before is removed. `load_from` takes such a file.

    Returns:
        The file.
    """
    state = checkpoint.load(source)
    unnamed = directory / f".{stem}.pt"
    checkpoint.save(unnamed, {"model": state.get("eval_model", state["model"])})
    with unnamed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    named = unnamed.rename(directory / f"{stem}-{digest[:8]}.pt")
    for other in set(directory.glob(f"{stem}-*.pt")) - {named}:
        other.unlink()
    return named
