"""Step table: a training step of this project and of hand-written loops, for an MLP, a ResNet and a transformer.

The MLP trains in float32, the others in bf16, the ResNet with channels last. All sides use the same order of batches,
the same initial weights and torch's fused Adam. The side of this project is a run with the default hooks, which writes
its journal and its checkpoints; the other sides are the functions of `by_hand`.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import by_hand
from part import NEEDS_CUDA, Part, run
from timing import Missing, Plan, Side, Window, going_on, take_turns
from work import RATE, Work

from catalog import STEP_SIDES, WORKS
from trainyard.data import TensorLoader
from trainyard.hooks import Hook
from trainyard.models import Supervised
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.runner.default_hooks import default_hooks

ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": RATE, "fused": True}
TOLERANCES = {"mlp": 1e-3, "resnet": 0.05, "transformer": 0.05}
"""Relative tolerances of the losses after 100 steps: bf16 has 8 bits, and kernels sum in different orders."""
FOREVER = 10**6
"""Epochs."""


def main(part: Part) -> None:
    plan = part.size(Plan(2.0, 0.5, 3), Plan(0.05, 0.0, 1, compared=3))
    take_turns(part, {key: sides(part, work, key != "mlp") for key, work in works(part).items()}, plan, TOLERANCES)


def works(part: Part) -> dict[str, Work]:
    """Return the works of `catalog.WORKS`; all batches are full."""
    kinds = {"mlp": "rings", "resnet": "images", "transformer": "text"}
    samples, batch = part.size((6400, 64), (8, 4))
    return {key: Work(kinds[key], samples, batch, device=part.device) for key in WORKS}


def sides(part: Part, work: Work, bf16: bool) -> dict[str, Side | Missing]:
    """Return the sides of a work, in the order of `STEP_SIDES`."""
    ours = partial(trainyard, part, work, precision="bf16" if bf16 else "fp32")
    found: list[Side | Missing] = [
        Side(ours) if part.cuda else Missing(NEEDS_CUDA),
        Side(partial(ours, capture=False)),
        going_on(partial(by_hand.resident, work, bf16)),
        going_on(partial(by_hand.with_loader, work, bf16)),
        going_on(partial(by_hand.whole_graph, work, bf16)) if part.cuda else Missing(NEEDS_CUDA),
        going_on(partial(by_hand.compiled, work, bf16)) if part.cuda else Missing(NEEDS_CUDA),
    ]
    return dict(zip(STEP_SIDES, found, strict=True))


class Until(Hook):
    """Ends a run when the window is over."""

    priority = "LOWEST"

    def __init__(self, window: Window) -> None:
        self.window = window

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if self.window.step(outputs["loss"]):
            runner.members[0].stop("the window is over")


def trainyard(part: Part, work: Work, window: Window, **arguments: Any) -> None:
    """Train a run of this project."""
    with tempfile.TemporaryDirectory(dir=part.folder) as folder:
        runner = Runner(
            model=Supervised(by_hand.net(work), work.loss),
            data={"train": TensorLoader(work.tensors, work.batch, shuffle=True, device=work.device)},
            optim=ADAM,
            hooks={**default_hooks(), "until": Until(window)},
            loop=EpochBasedTrainLoop(FOREVER),
            device=work.device,
            work_dir=folder,
            **arguments,
        )
        runner.train()
        refusal = getattr(runner.step, "refusal", None)
        if refusal is not None:
            raise RuntimeError(f"the step is not captured: {refusal}")


if __name__ == "__main__":
    run(main)
