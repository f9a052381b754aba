"""A test by several ranks, each with a share of the batches: one file, as one rank would have written it."""

import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from waiting import LIMIT

from trainyard.data.tensor_loader import TensorLoader
from trainyard.distributed import Strategy
from trainyard.hooks import PredictionDump
from trainyard.hooks.predictions import file
from trainyard.hooks.predictions.file import Predictions
from trainyard.models import Supervised
from trainyard.runner import Member, Runner
from trainyard.track import read


class Turns:
    """The batches of a loader that are this rank's, every `ranks`-th."""

    def __init__(self, loader: Any, rank: Any, ranks: Any) -> None:
        self.loader, self.rank, self.ranks = loader, rank, ranks
        self.batch_size, self.num_samples = loader.batch_size, loader.num_samples

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int = 0, start: int = 0) -> Any:
        return (batch for i, batch in enumerate(self.loader.batches(epoch)) if i % self.ranks == self.rank)


class Threads(Strategy):
    """Ranks that are threads of one process, and gather through a list."""

    def __init__(self, rank: Any, box: Any, barrier: Any) -> None:
        self.rank, self.world_size = rank, len(box)
        self.box, self.barrier = box, barrier

    def loader(self, loader: Any, split: Any) -> Any:
        return Turns(loader, self.rank, self.world_size)

    def gather(self, value: Any) -> Any:
        self.box[self.rank] = value
        self.barrier.wait(timeout=LIMIT)
        found = list(self.box)
        self.barrier.wait(timeout=LIMIT)
        return found


class Fails(nn.Module):
    """Its predictions do not fit for the batches of one rank."""

    def forward(self, x: Any, y: Any, mode: Any) -> Any:
        if mode == "loss":
            return {"loss": x.sum()}
        return x[1:] if 8 in y else x


def predicted_by(ranks: Any, folder: Any, model: Any, rows: int = 20, **options: Any) -> Any:
    x, y = torch.arange(2.0 * rows).view(rows, 2), torch.arange(rows)
    box, barrier = [None] * ranks, threading.Barrier(ranks)
    failed = []

    def run(rank: Any) -> None:
        try:
            Runner(
                model,
                {"test": TensorLoader((x, y), 4)},
                hooks={"predictions": PredictionDump(**options)},
                strategy=Threads(rank, box, barrier) if ranks > 1 else None,
                work_dir=folder,
                device="cpu",
            ).test()
        except Exception as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    return folder / "predictions.parquet"


@pytest.mark.parametrize(("ranks", "rows"), [(2, 20), (3, 18), (3, 6)])  # of 5 batches, 5 and 2: a rank may have none
def test_they_write_one_file(tmp_path: Path, ranks: int, rows: int) -> None:
    model = Supervised(nn.Linear(2, rows))
    alone = Predictions.read(predicted_by(1, tmp_path / "alone", model, rows))
    (tmp_path / "ranks").mkdir()
    together = Predictions.read(predicted_by(ranks, tmp_path / "ranks", model, rows))
    assert together.sizes == alone.sizes
    assert together.facts == alone.facts
    pd.testing.assert_frame_equal(pd.read_parquet(together.path), pd.read_parquet(alone.path))
    records = [record for record, _ in read(tmp_path / "ranks" / "metrics.jsonl") if record["kind"] == "artifact"]
    assert [record["path"] for record in records] == ["predictions.parquet"]
    assert not list((tmp_path / "ranks").glob(".*"))


@pytest.mark.parametrize("options", [{}, {"max_mb": 0.0001}])
def test_where_one_cannot_none_does(tmp_path: Path, caplog: pytest.LogCaptureFixture, options: Any) -> None:
    assert not predicted_by(2, tmp_path, Fails() if not options else Supervised(nn.Linear(2, 20)), **options).exists()
    assert caplog.text.count("not written") == 1
    assert not list(tmp_path.glob(".*"))


def test_a_rank_that_is_ahead_of_the_first_one_keeps_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 removes what a killed process has left before any rank writes."""
    ahead, opened = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x: Any, y: Any, mode: Any) -> Any:
            if 20 in y:  # the third batch of rank 1, which has written its first
                ahead.set()
                assert opened.wait(LIMIT)
            return {"loss": x.sum()} if mode == "loss" else x

    def late(member: Member, tracker: Any, *, resume: bool) -> None:
        ahead.wait(0.5)  # in vain, if the other ranks wait
        before(member, tracker, resume=resume)
        opened.set()

    before = Member.open
    monkeypatch.setattr(Member, "open", late)
    monkeypatch.setattr(file, "GROUP_BYTES", 1)
    assert predicted_by(2, tmp_path, Waits(), 28).exists()
