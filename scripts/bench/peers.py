"""Training of the sides that are peers: plain PyTorch and other libraries, as their own tutorials write it.

Checkpoints, loggers, progress bars and summaries of the peers are off. Each side is timed from the beginning of its
training loop to its end, by its own callback: work of a library before the loop is not counted.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from measure import Turn
from work import RATE, Work


@contextmanager
def plain(work: Work, *, fused: bool | None = None) -> Iterator[Turn]:
    """Yield a loop written by hand over a DataLoader; `fused=None` is torch's own choice of implementation."""
    loader, criterion, device = work.loader(), work.loss, work.device

    def turn() -> float:
        model = work.net().to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=fused)
        model.train()
        begin = work.now()
        for _ in range(work.epochs):
            for x, y in loader:
                x, y = x.to(device), y.to(device)
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
        return work.each(work.now() - begin)

    yield turn


@contextmanager
def kept(work: Work) -> Iterator[Turn]:
    """Yield the loop by hand with the fused Adam, in a process that keeps freed memory like `env.keep_memory`."""
    from trainyard.host_memory import keep_freed_memory

    keep_freed_memory()
    with plain(work, fused=True) as turn:
        yield turn


def lightning_module(work: Work) -> Any:
    """Return the work as a `LightningModule`."""
    import lightning

    criterion = work.loss

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = work.net()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            return criterion(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=RATE)

    return Module()


@contextmanager
def lightning(work: Work) -> Iterator[Turn]:
    """Yield a turn of `lightning.Trainer`."""
    import lightning

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Clock(lightning.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.begin = work.now()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.seconds = work.now() - self.begin

    loader = work.loader()

    def turn() -> float:
        clock = Clock()
        trainer = lightning.Trainer(
            max_epochs=work.epochs,
            accelerator="cpu" if work.device == "cpu" else "gpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(lightning_module(work), loader)
        return work.each(clock.seconds)

    yield turn


def mmengine_model(work: Work) -> Any:
    """Return the work as a model of MMEngine's."""
    from mmengine.model import BaseModel

    criterion = work.loss

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = work.net()

        def forward(self, x: torch.Tensor, y: torch.Tensor, mode: str = "tensor") -> Any:
            output = self.net(x)
            return {"loss": criterion(output, y)} if mode == "loss" else output

    return Model()


@contextmanager
def mmengine(work: Work) -> Iterator[Turn]:
    """Yield a turn of `mmengine.runner.Runner` without its logger and checkpoint hooks."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    warnings.filterwarnings("ignore")

    class Clock(Hook):
        priority = "HIGHEST"

        def before_train(self, runner: Any) -> None:
            self.begin = work.now()

        def after_train(self, runner: Any) -> None:
            self.seconds = work.now() - self.begin

    loader = work.loader()
    with tempfile.TemporaryDirectory() as folder:

        def turn() -> float:
            clock = Clock()
            runner = Runner(
                model=mmengine_model(work),
                work_dir=folder,
                train_dataloader=loader,
                train_cfg={"by_epoch": True, "max_epochs": work.epochs},
                optim_wrapper={"optimizer": {"type": "Adam", "lr": RATE}},
                default_hooks={"logger": None, "checkpoint": None},
                custom_hooks=[clock],
                log_level="ERROR",
                experiment_name=tempfile.mktemp(dir=""),
            )
            runner.train()
            return work.each(clock.seconds)

        yield turn


@contextmanager
def ignite(work: Work) -> Iterator[Turn]:
    """Yield a turn of `ignite.engine.create_supervised_trainer`."""
    from ignite.engine import create_supervised_trainer

    loader = work.loader()

    def turn() -> float:
        model = work.net().to(work.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        trainer = create_supervised_trainer(model, optimizer, work.loss, device=work.device)
        begin = work.now()
        trainer.run(loader, max_epochs=work.epochs)
        return work.each(work.now() - begin)

    yield turn


@contextmanager
def accelerate(work: Work) -> Iterator[Turn]:
    """Yield a loop written by hand with `accelerate.Accelerator`."""
    from accelerate import Accelerator

    criterion = work.loss
    accelerator = Accelerator(cpu=work.device == "cpu")
    loader = work.loader()

    def turn() -> float:
        model = work.net()
        adam = torch.optim.Adam(model.parameters(), lr=RATE)
        model, optimizer, batches = accelerator.prepare(model, adam, loader)
        model.train()
        begin = work.now()
        for _ in range(work.epochs):
            for x, y in batches:
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
        seconds = work.now() - begin
        accelerator.free_memory()
        return work.each(seconds)

    yield turn


PEERS = {"MMEngine": mmengine, "Lightning": lightning, "ignite": ignite, "accelerate": accelerate}
