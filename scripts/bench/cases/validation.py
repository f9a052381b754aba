"""Time of a validation batch: 25,600 points, batch size 256, MLP 2-64-64-2; accuracy and mean loss over all points.

The plain loop sums the loss and the correct predictions on the device. Lightning uses `self.log`; Trainyard and ignite
use their metrics.

**Result:** most of the time is spent in the `DataLoader`, which resident data does not need.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import ours
import torch
from measure import Session, Table, Turn, compared, take_turns
from work import Work

from trainyard.hooks import Hook
from trainyard.models import Supervised
from trainyard.runner import Runner
from trainyard.runner.default_hooks import default_hooks

METRICS = {
    "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
    "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
}


class Clock(Hook):
    priority = "HIGHEST"

    def before_val(self, runner: Runner) -> None:
        self._begin = perf_counter()

    def after_val_epoch(self, runner: Runner, metrics: Any) -> None:
        self.seconds = perf_counter() - self._begin


def tables(session: Session) -> Iterator[Table]:
    work = Work(samples=25_600, batch=256, epochs=session.size(5, 1))
    sides = {
        "trainyard, resident data": partial(trainyard, work, resident=True),
        "trainyard, the same DataLoader": partial(trainyard, work, resident=False),
        "plain PyTorch": partial(plain, work),
        "Lightning": partial(lightning, work),
        "ignite": partial(ignite, work),
    }
    values, failed = take_turns(session.fewer(), sides)
    resident, same, *others = sides
    comparisons = compared(dict.fromkeys(others), resident) + compared(dict.fromkeys(others), same)
    yield Table("Validation", "µs per batch", values, failed, comparisons)


@contextmanager
def trainyard(
    work: Work, *, resident: bool, metrics: Mapping[str, Any] = METRICS, objective: str = "val/accuracy"
) -> Iterator[Turn]:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model=Supervised(work.net()),
            data=ours.data(work, resident=resident, split="val"),
            hooks={**default_hooks(), "clock": clock},
            metrics=metrics,
            device="cpu",
            work_dir=f"{folder}/run",
            objective=objective,
            direction="maximize",
        )
        with runner.session():

            def turn() -> float:
                seconds = 0.0
                for _ in range(work.epochs):
                    runner.val()
                    seconds += clock.seconds
                return work.each(seconds)

            yield turn


@contextmanager
def plain(work: Work) -> Iterator[Turn]:
    loader, criterion, model = work.loader(shuffle=False), work.loss, work.net()

    def turn() -> float:
        begin = perf_counter()
        for _ in range(work.epochs):
            model.eval()
            loss, correct = torch.zeros(()), torch.zeros((), dtype=torch.long)
            with torch.no_grad():
                for x, y in loader:
                    output = model(x)
                    loss += criterion(output, y) * len(y)
                    correct += (output.argmax(1) == y).sum()
            _ = loss.item() / work.samples, correct.item() / work.samples
        return work.each(perf_counter() - begin)

    yield turn


@contextmanager
def lightning(work: Work) -> Iterator[Turn]:
    import lightning

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = work.net()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            output = self.net(x)
            self.log("val/loss", work.loss(output, y), batch_size=len(y))
            self.log("val/accuracy", (output.argmax(1) == y).float().mean(), batch_size=len(y))

    class Watch(lightning.Callback):
        def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.begin = perf_counter()

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.seconds = perf_counter() - self.begin

    watch, module, loader = Watch(), Module(), work.loader(shuffle=False)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[watch]
    )

    def turn() -> float:
        seconds = 0.0
        for _ in range(work.epochs):
            trainer.validate(module, loader, verbose=False)
            seconds += watch.seconds
        return work.each(seconds)

    yield turn


@contextmanager
def ignite(work: Work) -> Iterator[Turn]:
    from ignite.engine import create_supervised_evaluator
    from ignite.metrics import Accuracy, Loss

    loader = work.loader(shuffle=False)
    metrics = {"accuracy": Accuracy(), "loss": Loss(torch.nn.CrossEntropyLoss())}
    evaluator = create_supervised_evaluator(work.net(), metrics)

    def turn() -> float:
        begin = perf_counter()
        for _ in range(work.epochs):
            evaluator.run(loader)
        return work.each(perf_counter() - begin)

    yield turn
