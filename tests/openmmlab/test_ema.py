"""Averages of the weights: what is evaluated at each validation, and what the run ends with."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import ours, theirs

from trainyard.hooks import EMA

pytest.importorskip("mmengine", reason="MMEngine is not installed: bash scripts/test_openmmlab.sh")
from mmengine.hooks import EMAHook

KINDS = {
    "exponential": "ExponentialMovingAverage",
    "swa": "StochasticWeightAverage",
    "annealing": "MomentumAnnealingEMA",
}
_runs = count()


@settings(max_examples=25)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    momentum=st.sampled_from([0.0002, 0.1, 0.5]),
    gamma=st.sampled_from([1, 5, 100]),
    interval=st.integers(1, 4),
    begin=st.integers(0, 4),
    buffers=st.booleans(),
    by_epoch=st.booleans(),
)
def test_averages(
    kind: str,
    momentum: float,
    gamma: int,
    interval: int,
    begin: int,
    buffers: bool,
    by_epoch: bool,
    tmp_path: Path,
) -> None:
    number = next(_runs)
    arguments: Any = {"length": 4 if by_epoch else 9, "by_epoch": by_epoch}
    numbers: dict[str, Any] = {"interval": interval, "update_buffers": buffers}
    numbers |= {} if kind == "swa" else {"momentum": momentum}
    numbers |= {"gamma": gamma} if kind == "annealing" else {}
    starts = {"begin_epoch" if by_epoch else "begin_iter": begin}
    expected = theirs(
        tmp_path / f"{number}a",
        hooks=[EMAHook(KINDS[kind], **starts, **numbers)],
        train_cfg={"val_interval": 1},
        **arguments,
    )
    numbers = numbers if kind == "annealing" else numbers | {"gamma": 100.0}
    hook = EMA(kind=kind, begin=max(begin, 1), **numbers)
    found = ours(tmp_path / f"{number}b", hooks={"ema": hook}, loop={"val_interval": 1}, **arguments)
    assert found.validated == expected.validated
    for own, other in zip(found.evaluated, expected.evaluated, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=0)
