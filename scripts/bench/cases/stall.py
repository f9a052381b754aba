"""Time for which the loop waits for a checkpoint of about 100 MB.

The checkpoint contains an MLP with 8.5 million parameters and Adam's two moments. In Trainyard, the checkpoint hook,
without other hooks, copies the state, and a thread writes the file. The other tools write the file with `torch.save`,
`Trainer.save_checkpoint` and `Runner.save_checkpoint`. A figure is the median over the saves of a run. Trainyard's
first save has its own row: a thread allocates the memory for its copy during training, and later saves reuse this
memory.

**Result:** the loop waits only for the copy.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import ours
import peers
import torch
from measure import Session, Side, Table, Turn, compared, take_turns
from work import RATE, Work

from trainyard.hooks import Hook
from trainyard.runner import Runner

SAVES, INTERVAL = 4, 12
WORK = Work(samples=SAVES * INTERVAL * 64, hidden=(2048, 2048, 2048), features=64, epochs=1)


class Mark(Hook):
    """Hook that records the times at which it is called at the end of an iteration."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.moments: list[float] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.moments.append(perf_counter())


def tables(session: Session) -> Iterator[Table]:
    sides: dict[str, Side] = {
        "trainyard": partial(trainyard, first=False),
        "trainyard, the first save": partial(trainyard, first=True),
        "plain PyTorch": plain,
        "Lightning": lightning,
        "MMEngine": mmengine,
    }
    values, failed = take_turns(session, sides, turns=1, warm=False)
    yield Table("Checkpoint stall", "ms per save", values, failed, compared(sides, "trainyard"))


@contextmanager
def trainyard(*, first: bool) -> Iterator[Turn]:
    with tempfile.TemporaryDirectory() as folder:

        def turn() -> float:
            before, after = Mark(89), Mark(91)  # the checkpoint hook has priority 90
            save = {
                "_target_": "trainyard.hooks.Checkpoint",
                "interval": INTERVAL,
                "by": "iter",
                "save_best": False,
                "save_last": False,
            }
            hooks = {"before": before, "checkpoint": save, "after": after}
            ours.runner(WORK, Path(folder), hooks, resident=False).train()
            took = [end - begin for begin, end in zip(before.moments, after.moments, strict=True)]
            stalls = took[INTERVAL - 1 :: INTERVAL]
            return 1e3 * (stalls[0] if first else statistics.median(stalls[1:]))

        yield turn


@contextmanager
def plain() -> Iterator[Turn]:
    loader, criterion = WORK.loader(), WORK.loss
    with tempfile.TemporaryDirectory() as folder:

        def turn() -> float:
            model = WORK.net()
            optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
            took = []
            for number, (x, y) in enumerate(loader, 1):
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
                if number % INTERVAL == 0:
                    begin = perf_counter()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter": number}
                    torch.save(state, f"{folder}/{number}.pt")
                    took.append(perf_counter() - begin)
            return 1e3 * statistics.median(took)

        yield turn


@contextmanager
def lightning() -> Iterator[Turn]:
    import lightning

    class Save(lightning.Callback):
        def __init__(self, folder: str) -> None:
            self.folder = folder
            self.took: list[float] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (batch_idx + 1) % INTERVAL == 0:
                begin = perf_counter()
                trainer.save_checkpoint(f"{self.folder}/{batch_idx}.ckpt")
                self.took.append(perf_counter() - begin)

    with tempfile.TemporaryDirectory() as folder:

        def turn() -> float:
            save = Save(folder)
            trainer = lightning.Trainer(
                max_epochs=1,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[save],
            )
            trainer.fit(peers.lightning_module(WORK), WORK.loader())
            return 1e3 * statistics.median(save.took)

        yield turn


@contextmanager
def mmengine() -> Iterator[Turn]:
    from mmengine.hooks import Hook as MMEngineHook
    from mmengine.runner import Runner as MMEngineRunner

    class Save(MMEngineHook):
        def __init__(self, folder: str) -> None:
            self.folder = folder
            self.took: list[float] = []

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            if (batch_idx + 1) % INTERVAL == 0:
                begin = perf_counter()
                runner.save_checkpoint(self.folder, f"{batch_idx}.pth", by_epoch=False)
                self.took.append(perf_counter() - begin)

    with tempfile.TemporaryDirectory() as folder:

        def turn() -> float:
            save = Save(folder)
            MMEngineRunner(
                model=peers.mmengine_model(WORK),
                work_dir=folder,
                train_dataloader=WORK.loader(),
                train_cfg={"by_epoch": True, "max_epochs": 1},
                optim_wrapper={"optimizer": {"type": "Adam", "lr": RATE}},
                default_hooks={"logger": None, "checkpoint": None},
                custom_hooks=[save],
                log_level="ERROR",
            ).train()
            return 1e3 * statistics.median(save.took)

        yield turn
