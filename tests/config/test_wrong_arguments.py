"""Any argument of any part with any value is taken, or refused by an error that names it: also by Python code, which
passes no check of a config."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import trainyard.hooks
from trainyard import data, models, optim, schedules
from trainyard.distributed.ddp import DDP
from trainyard.distributed.fsdp import FSDP
from trainyard.errors import ConfigError
from trainyard.hooks import Hook
from trainyard.runner import Env, EpochBasedTrainLoop, IterBasedTrainLoop
from trainyard.runner.weights import LoadFrom
from trainyard.track import MLflowTracker

WRONG: tuple[Any, ...] = (
    None,
    "",
    "abc",
    "auto",
    True,
    0,
    -1,
    2.5,
    1e400,
    math.nan,
    10**30,
    [],
    {},
    set(),
    [None],
    [[]],
    [1, "a"],
    [["a", "b"]],
    [["a", r"\1"]],
    [["a", r"\g<b>"]],
    {"a": 1},
    {"a": None},
    {"a": [1]},
    {"a": {"b": 1}},
    {3: 5},
    {3: []},
    {1: "x"},
    {None: None},
    b"x",
    1j,
    object(),
)
HOOKS = [getattr(trainyard.hooks, name) for name in trainyard.hooks.__all__]
WEIGHTS = {"params": [nn.Parameter(torch.ones(2, 2))]}
PARTS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    *((kind, {"at": {1: "net"}} if kind is trainyard.hooks.Unfreeze else {}) for kind in HOOKS if kind is not Hook),
    (DDP, {}),
    (FSDP, {}),
    (data.Rings, {"num_samples": 20}),
    (data.Arrays, {"path": "a.npz"}),
    (data.Arrays, {"path": "a.csv", "target": "y"}),
    (data.Stream, {"shards": "a.npz", "num_classes": 2}),
    (data.Text, {"path": "a.txt", "context_length": 8}),
    (data.FirstSamples, {"dataset": [1, 2], "count": 1}),
    (models.Mixup, {"num_classes": 2}),
    (models.MLP, {"in_features": 2, "num_classes": 2}),
    (models.CNN, {"in_channels": 1, "num_classes": 2}),
    (optim.Lion, WEIGHTS),
    (optim.Muon, WEIGHTS),
    (optim.SAM, WEIGHTS),
    (optim.Paramwise, {}),
    (schedules.Schedule, {}),
    (schedules.Plateau, {}),
    (Env, {}),
    (EpochBasedTrainLoop, {"max_epochs": 1}),
    (IterBasedTrainLoop, {"max_iters": 1}),
    (LoadFrom, {"path": "a.pt"}),
    (MLflowTracker, {}),
]


@pytest.mark.parametrize(("kind", "given"), PARTS, ids=lambda each: getattr(each, "__name__", ""))
def test_an_argument_with_another_value_is_taken_or_named(
    kind: Callable[..., Any], given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=np.ones((20, 2), np.float32), y=np.arange(20) % 2)
    pd.DataFrame({"a": np.arange(20.0), "y": np.arange(20) % 2}).to_csv("a.csv", index=False)
    Path("a.txt").write_text("a short text, " * 20)
    kind(**given)
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(kind).parameters
    for name, parameter in parameters.items():
        if parameter.kind not in keywords or name == "params":
            continue
        for wrong in WRONG:
            named = name
            try:
                kind(**given | {name: wrong})
            except ConfigError as error:
                named = error.key.partition(".")[0]
            assert named in parameters, (name, wrong)
