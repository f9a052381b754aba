"""Memory that torch reserves, over the epochs of a run with two data workers, with and without a failing capture."""

from __future__ import annotations

from pathlib import Path

import torch
from part import Part, run
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from work import Work

from trainyard.hooks import Hook
from trainyard.models import Supervised
from trainyard.runner import EpochBasedTrainLoop, Runner

EPOCHS = 10
SETTLED = 3
"""Epoch after which the reserved memory must not grow."""


def main(part: Part) -> None:
    for row, fails in (("captured", False), ("capture fails", True)):
        held, refusal = epochs(part, fails)
        part.put("memory", row, found=", ".join(f"{each / 1e6:.0f}" for each in held), bytes=held, refusal=refusal)
        print(row, held, refusal, flush=True)
        if part.cuda and max(held[SETTLED:]) > held[SETTLED - 1]:
            part.fail(f"memory: {row}: the reserved memory grows after epoch {SETTLED}")
        if part.cuda and (refusal is not None) != fails:
            part.fail(f"memory: {row}: the step is {'captured' if fails else f'not captured: {refusal}'}")


def epochs(part: Part, fails: bool) -> tuple[list[int], str | None]:
    """Train; return the reserved bytes after each epoch, and the reason why the step is not captured."""
    work = Work("images", part.size(6400, 8), part.size(64, 4), device=part.device)
    loader = DataLoader(
        TensorDataset(*work.tensors), work.batch, shuffle=True, num_workers=2, persistent_workers=not part.quick
    )
    held = Held()
    runner = Runner(
        model=Supervised(work.net(), failing_loss if fails else work.loss),
        data={"train": loader},
        optim={"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3, "fused": True},
        hooks={"held": held},
        loop=EpochBasedTrainLoop(part.size(EPOCHS, 4)),
        device=part.device,
    )
    runner.train()
    return held.bytes, getattr(runner.step, "refusal", None)


def failing_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy; wait for the device only during the capture, not in the steps before it."""
    loss = torch.nn.functional.cross_entropy(output, target)
    if loss.is_cuda and torch.cuda.is_current_stream_capturing():
        loss.item()
    return loss


class Held(Hook):
    """Records the memory after each epoch: what torch reserves on the device, or the memory of the process."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def after_train_epoch(self, runner: Runner) -> None:
        self.bytes.append(
            torch.cuda.memory_reserved(runner.device) if runner.device.type == "cuda" else resident_bytes()
        )


def resident_bytes() -> int:
    """Return the bytes of main memory that this process uses."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    run(main)
