"""Places at which the host waits for the device in a run with hooks, two data workers and checkpoints."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from part import NEEDS_CUDA, Part, run
from torch.utils.data import DataLoader, TensorDataset
from work import Work

from trainyard.hooks import EMA, Hook
from trainyard.metrics import CrossEntropy
from trainyard.models import Supervised
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.runner.default_hooks import default_hooks
from trainyard.step.cuda_graph.graph import SYNCHRONISES

ROOT = Path(__file__).resolve().parents[3]
EPOCHS = 10


def main(part: Part) -> None:
    work = Work(samples=part.size(1280, 64), batch=part.size(64, 16), device=part.device)
    data = TensorDataset(*work.tensors)
    settings: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
    hooks = default_hooks()
    hooks["checkpoint"] |= {"interval": 1, "min_seconds": 0.0}
    runner = Runner(
        model=Supervised(work.net(), work.loss),
        data={
            "train": DataLoader(data, work.batch, shuffle=True, **settings),
            "val": DataLoader(data, work.batch, **settings),
        },
        optim={"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3, "fused": True},
        hooks={**hooks, "ema": EMA(decay=0.99), "iteration": (iteration := Iteration())},
        metrics={"loss": CrossEntropy()},
        loop=EpochBasedTrainLoop(EPOCHS, val_interval=5),
        device=part.device,
        work_dir=part.folder / "run",
    )
    runner.prepare()
    if not part.cuda:
        runner.train()
        part.put("waits", "iterations", found=runner.iter)
        part.put("waits", "waits", missing=NEEDS_CUDA)
        part.put("waits", "by line", missing=NEEDS_CUDA)
        return
    with waits(iteration) as places:
        runner.train()
    ordered = [
        {"place": place, "count": len(at), "first": min(at), "last": max(at)}
        for place, at in sorted(places.items(), key=lambda item: -len(item[1]))
    ]
    part.put("waits", "iterations", found=runner.iter)
    part.put("waits", "waits", found=sum(map(len, places.values())))
    lines = [
        f"{each['place']} {each['count']} times (iterations {each['first']} to {each['last']})" for each in ordered
    ]
    part.put("waits", "by line", found="; ".join(lines) or "none", places=ordered)


class Iteration(Hook):
    """Records the number of the current iteration."""

    priority = "HIGHEST"
    number = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        self.number = runner.iter + 1


@contextmanager
def waits(iteration: Iteration) -> Iterator[dict[str, list[int]]]:
    """Record the waits of all threads inside the block: for each line, the iterations at which it waited."""
    places: dict[str, list[int]] = {}

    def note(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if SYNCHRONISES in str(message):
            places.setdefault(place(filename, lineno), []).append(iteration.number)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment] # further arguments are not used
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def place(filename: str, lineno: int) -> str:
    """Return the line that waits, and the line of this project that called this line."""
    own = [
        f"{Path(frame.filename).relative_to(ROOT / 'src' / 'trainyard')}:{frame.lineno}"
        for frame in traceback.extract_stack(limit=60)
        if Path(frame.filename).is_relative_to(ROOT / "src" / "trainyard")
    ]
    here = f"{Path(filename).name}:{lineno}"
    if not own or Path(filename).is_relative_to(ROOT / "src"):
        return own[-1] if own else here
    return f"{here} from {own[-1]}"


if __name__ == "__main__":
    run(main)
