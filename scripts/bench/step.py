"""Time per iteration against a hand-written PyTorch loop: rings, MLP 2-64-64-2, batch 64, Adam.

The hand-written loop draws from `DataLoader(TensorDataset)`. Ours has its default hooks and tracks into MLflow; it is
timed once on resident data, as configs have it, and once on the very DataLoader of the hand-written loop. All three run
in this process, one after the other, again and again, in an order that changes; the ratios are taken round by round.

    python scripts/bench/step.py [--device cuda] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import Data, Rings
from trainyard.hooks import Hook
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.track import MLflowTracker

SAMPLES, BATCH, EPOCHS = 6400, 64, 20
ITERATIONS = EPOCHS * -(-SAMPLES // BATCH)


class Clock(Hook):
    """Seconds that the training loop took, checkpoints and logging included."""

    priority = "HIGHEST"

    def before_train(self, runner: Runner) -> None:
        _wait(runner.device)
        self._begin = perf_counter()

    def after_run(self, runner: Runner) -> None:
        _wait(runner.device)
        self.seconds = perf_counter() - self._begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rings() -> Rings:
    return Rings(num_samples=SAMPLES, batch_size=BATCH, val_fraction=0.0, test_fraction=0.0)


def _dataset() -> TensorDataset:
    data = _rings()
    batches = list(data.loader("train", seed=0, device=torch.device("cpu")).batches())
    return TensorDataset(*(torch.cat(column) for column in zip(*batches, strict=True)))


def by_hand(device: torch.device) -> float:
    """Seconds of the loop as the tutorials write it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(_dataset(), batch_size=BATCH, shuffle=True)
    model.train()
    _wait(device)
    begin = perf_counter()
    for _ in range(EPOCHS):
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
    _wait(device)
    return perf_counter() - begin


def ours(data: Data | dict[str, Any], device: torch.device, folder: Path, tracker: MLflowTracker) -> float:
    """Seconds of our loop with default hooks, journal, checkpoints and a shipper at work."""
    from trainyard.runner.runner import DEFAULT_HOOKS

    clock = Clock()
    runner = Runner(
        model={
            "_target_": "trainyard.models.MLP",
            "in_features": 2,
            "hidden": [64, 64],
            "num_classes": 2,
            "activation": "relu",
        },
        data=data,
        optim={"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3, "fused": True},
        hooks={**DEFAULT_HOOKS, "clock": clock},
        loop=EpochBasedTrainLoop(EPOCHS),
        device=str(device),
        work_dir=tempfile.mkdtemp(dir=folder),
        tracker=tracker,
    )
    runner.train()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tracker = MLflowTracker(uri=f"sqlite:///{folder / 'mlflow.db'}", log_model=False)
        tracker.start()
        cases: dict[str, Callable[[], float]] = {
            "by hand, DataLoader": lambda: by_hand(device),
            "trainyard, resident data": lambda: ours(_rings(), device, folder, tracker),
            "trainyard, the same DataLoader": lambda: ours(
                {"train": DataLoader(_dataset(), batch_size=BATCH, shuffle=True)}, device, folder, tracker
            ),
        }
        for run in cases.values():
            run()
        seconds: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(options.rounds):
            for case in random.sample(list(cases), len(cases)):
                seconds[case].append(cases[case]())
        tracker.finish()
    base = seconds["by hand, DataLoader"]
    figures = {}
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    print(f"{'':34}{'µs/iteration':>14}{'ratio':>8}  (min to max)")
    for case, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, base, strict=True)]
        micros = statistics.median(values) / ITERATIONS * 1e6
        ratio = statistics.median(ratios)
        figures[case] = {"us_per_iteration": micros, "ratio": ratio, "ratios": ratios}
        print(f"{case:34}{micros:14.1f}{ratio:8.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "device": str(device), "cases": figures}))


if __name__ == "__main__":
    sys.exit(main())
