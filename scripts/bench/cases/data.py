"""Images in JPEG files, read by two worker processes, and tokens in a memory-mapped file.

**Images.** 1,280 files that are similar to photographs (mostly 500x375 pixels, about 95 KB), in 8 folders, for a linear
model of the mean colors, in float batches of 32. All tools use `RandomResizedCrop` to 224x224 and random flips, with
persistent workers. The second and the third epoch are measured. The plain loops and Lightning use torchvision's
`ImageFolder` with transforms (`v2`), timm its `create_dataset` and `create_loader`, and Trainyard `data=image_folder`.
Pillow decodes, except in the last two rows (`data.decoder=torchcodec`). All tools run in `.venv-models`, with the torch
version that torchvision was built for (`constraints-models.txt`).

**Tokens.** An epoch of `data=tokens` over 64 million tokens of two bytes in the page cache, in batches of 32 windows of
1,024 tokens. A batch contains the tokens and the next tokens as int64: 16 bytes for each token. The comparisons are a
loop over the same windows with numpy, and a copy of as many bytes.

**Result:** Trainyard reads images faster than the other tools with the same decoder. Reading tokens takes not much
longer than copying the bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from environment import ROOT
from measure import Comparison, Session, Side, Table, Turn, compared, take_turns, take_turns_here

from trainyard.data import Loader, Tokens

IMAGES = Path(__file__).resolve().parents[1] / "images"
OURS, DECODED = "trainyard", "trainyard, TorchCodec decodes"
PEERS = (
    "DataLoader, transforms on PIL images",
    "DataLoader, transforms on tensors",
    "Lightning, transforms on tensors",
    "timm",
)
DECODED_PEER = "DataLoader, TorchCodec decodes"
LENGTH, BATCH = 1024, 32


def tables(session: Session) -> Iterator[Table]:
    yield _images(session)
    yield _tokens(session)


def _images(session: Session) -> Table:
    sides = (OURS, *PEERS, DECODED, DECODED_PEER)
    title, unit = "Images in files, 2 workers", "µs per image"
    comparisons = [
        *compared(dict.fromkeys(PEERS), OURS, dict.fromkeys(PEERS, 1.0)),
        Comparison(DECODED, DECODED_PEER, 1.0),
    ]
    made = subprocess.run(
        ["bash", str(ROOT / "scripts" / "models_venv.sh"), sys.executable], check=False, capture_output=True, text=True
    )
    if made.returncode:
        said = [line for line in made.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        reason = f".venv-models cannot be installed: {said[-1].removeprefix('ERROR: ')}"
        session.say(reason)
        return Table(title, unit, {}, dict.fromkeys(sides, reason), comparisons)
    folder = session.folder / "images"
    _run("make_images.py", str(folder), "--files", str(session.size(1280, 64)))

    def turn(side: str) -> float:
        return float(_run("sides.py", side, str(folder), "--epochs", "3").split()[-1])

    values, failed = take_turns_here(session, {side: partial(turn, side) for side in sides}, warm=False)
    return Table(title, unit, values, failed, comparisons)


def _run(script: str, *arguments: str) -> str:
    """Return what a script of the folder `images` prints, run in `.venv-models`.

    Raises:
        RuntimeError: it failed, with the last line of its message.
    """
    command = [str(ROOT / ".venv-models" / "bin" / "python"), str(IMAGES / script), *arguments]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=clean)
    if done.returncode:
        raise RuntimeError(" ".join((done.stderr.strip().splitlines() or ["no message"])[-1].split())[:200])
    return done.stdout


def _tokens(session: Session) -> Table:
    file = session.folder / "tokens.bin"
    np.random.default_rng(0).integers(0, 50257, session.size(64_000_000, 1_000_000), dtype=np.uint16).tofile(file)
    sides: dict[str, Side] = {
        "data=tokens": partial(tokens, file),
        "numpy, the same windows": partial(windows, file),
        "copy of the same number of bytes": partial(copy, file),
    }
    values, failed = take_turns(session, sides)
    of, to, floor = sides
    comparisons = [Comparison(of, to, 1.0), Comparison(of, floor, 1.5)]
    return Table("Tokens in a memory-mapped file", "ns per token", values, failed, comparisons)


@contextmanager
def tokens(file: Path) -> Iterator[Turn]:
    """Yield an epoch of `data=tokens`."""
    loader = read(file)
    epoch = 0

    def turn() -> float:
        nonlocal epoch
        epoch += 1
        begin, count = perf_counter(), 0
        for x, _ in loader.batches(epoch):
            count += x.numel()
        return 1e9 * (perf_counter() - begin) / count

    yield turn


def read(file: Path) -> Loader:
    """Return the loader of `data=tokens` for training."""
    data = Tokens(str(file), vocab_size=65536, context_length=LENGTH, batch_size=BATCH, val_fraction=0, test_fraction=0)
    return data.loader("train", seed=0, device=torch.device("cpu"))


@contextmanager
def windows(file: Path) -> Iterator[Turn]:
    """Yield an epoch of windows in a random order, cut and converted one by one."""
    mapped = np.memmap(file, dtype=np.uint16, mode="r")

    def turn() -> float:
        starts = LENGTH * np.random.permutation((len(mapped) - 1) // LENGTH)
        begin, count = perf_counter(), 0
        for first in range(0, len(starts), BATCH):
            own = starts[first : first + BATCH]
            x = torch.stack([torch.from_numpy(mapped[at : at + LENGTH].astype(np.int64)) for at in own])
            torch.stack([torch.from_numpy(mapped[at + 1 : at + 1 + LENGTH].astype(np.int64)) for at in own])
            count += x.numel()
        return 1e9 * (perf_counter() - begin) / count

    yield turn


@contextmanager
def copy(file: Path) -> Iterator[Turn]:
    """Yield copies of the mapped file, as often as the batches have more bytes than it."""
    mapped = np.memmap(file, dtype=np.uint8, mode="r")
    size = 2 * BATCH * LENGTH * 8  # of a batch
    into = np.empty(size, np.uint8)

    def turn() -> float:
        begin = perf_counter()
        for _ in range(8):
            for first in range(0, len(mapped) - size, size):
                np.copyto(into, mapped[first : first + size])
        return 1e9 * (perf_counter() - begin) / (len(mapped) // 2)

    yield turn
