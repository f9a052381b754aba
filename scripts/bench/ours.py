"""Training of the side that is this project."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import Turn
from work import RATE, Work

from trainyard.data import TensorLoader
from trainyard.hooks import Hook
from trainyard.models import Supervised
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.runner.default_hooks import default_hooks
from trainyard.track import MLflowTracker, journal
from trainyard.track.shipped import Shipped

DEFAULT_HOOKS = default_hooks()
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": RATE, "fused": True}  # as conf/optim/adam.yaml


class Clock(Hook):
    """Hook that measures the training to the end of the run, in seconds, including checkpoints and logging."""

    priority = "HIGHEST"

    def __init__(self, work: Work) -> None:
        self.work = work

    def before_train(self, runner: Runner) -> None:
        self._begin = self.work.now()

    def after_run(self, runner: Runner) -> None:
        self.seconds = self.work.now() - self._begin


def data(work: Work, *, resident: bool, split: str = "train") -> dict[str, Any]:
    """Return the config of the data: resident, like the built-in data, or the DataLoader of the other sides."""
    shuffle = split == "train"
    if resident:
        return {split: TensorLoader(work.tensors, work.batch, shuffle=shuffle, device=work.device)}
    return {split: work.loader(shuffle=shuffle)}


def runner(work: Work, folder: Path, hooks: Mapping[str, Any], *, resident: bool, **arguments: Any) -> Runner:
    """Return a Runner for the work, in a new directory."""
    return Runner(
        model=Supervised(work.net(), work.loss),
        data=data(work, resident=resident),
        optim=ADAM,
        hooks=hooks,
        loop=EpochBasedTrainLoop(work.epochs),
        device=work.device,
        work_dir=tempfile.mkdtemp(dir=folder),
        **arguments,
    )


@contextmanager
def trainyard(
    work: Work,
    *,
    resident: bool,
    hooks: Mapping[str, Any] = DEFAULT_HOOKS,
    uri: str | None = "",
    **arguments: Any,
) -> Iterator[Turn]:
    """Yield a Runner with its default hooks: a journal, a checkpoint a second, and a shipper beside it.

    Args:
        work: the work.
        resident: data in memory, or the DataLoader of the other sides.
        hooks: in place of the default ones.
        uri: the address of MLflow; "" makes a SQLite database, None tracks nothing.
        **arguments: further arguments of the Runner.
    """
    with tempfile.TemporaryDirectory() as name, tracking(Path(name), uri) as tracker:

        def turn() -> float:
            clock = Clock(work)
            mine = runner(work, Path(name), {**hooks, "clock": clock}, resident=resident, tracker=tracker, **arguments)
            mine.train()
            if tracker is not None:
                wait_until_shipped(mine.members[0].directory, tracker)
            return work.each(clock.seconds)

        yield turn


def wait_until_shipped(directory: Path, tracker: MLflowTracker, patience: float = 120.0) -> None:
    """Wait until everything is shipped, so that it does not slow the other sides."""
    deadline = time.monotonic() + patience
    size = (directory / journal.FILE).stat().st_size
    while True:
        shipped = Shipped.load(directory, tracker.uri)
        if shipped.offset == size and not shipped.uploads and shipped.sent_status == shipped.status:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{size - shipped.offset} bytes are not shipped: {shipped.error}")
        time.sleep(0.05)


@contextmanager
def tracking(folder: Path, uri: str | None) -> Iterator[MLflowTracker | None]:
    """Run a shipper, if there is an MLflow to ship to, and yield its tracker."""
    if uri is None or not _has_mlflow():
        yield None
        return
    tracker = MLflowTracker(uri=uri or f"sqlite:///{folder / 'mlflow.db'}", log_model=False)
    tracker.start()
    time.sleep(3.0)  # it has imported what it needs by then
    yield tracker
    tracker.finish()


def _has_mlflow() -> bool:
    from importlib.util import find_spec

    return find_spec("mlflow") is not None
