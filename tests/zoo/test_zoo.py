"""Each model of `cases.py`: trained alone and stacked, resumed, loaded from MLflow, served.

Skipped where the library is not installed: `bash scripts/test_models.sh` runs them all, and writes what it sees to
docs/works-with.md.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.zoo.batches import inputs, loaders
from tests.zoo.cases import CASES, Case
from torch import Tensor

from trainyard.errors import Unfusable
from trainyard.fused.runner import FusedRunner
from trainyard.run.record import predict
from trainyard.runner import Runner
from trainyard.track.shipper.served_model import ServedModel

BOUND, ROUNDING = 1e-4, 1e-12


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    try:
        importlib.import_module(found.library)
    except (ImportError, RuntimeError, OSError) as error:  # as torchvision of another torch
        pytest.skip(f"{found.library} does not import: {error}")
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(case: Case, lr: float = 0.01, **more: Any) -> dict[str, Any]:
    logged = case.library == "lightning"
    return {
        "model": case.config,
        "data": {name: loader for name, loader in loaders(case.data).items() if logged or name == "train"},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": lr, "momentum": 0.9},
        "loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 4},
        "metric": {"logged": {"_target_": "trainyard.metrics.Logged"}} if logged else {},
        "hook": {},
        "device": "cpu",
        "seed": 2,
        "work_dir": None,
    } | more


def trained(case: Case, **more: Any) -> Runner:
    runner = Runner.from_cfg(config(case, **more))
    runner.train()
    return runner


@contextmanager
def told(case: Case, column: str) -> Iterator[list[str]]:
    """Append the result of a column to the file that ZOO_RESULTS names, if it names one."""
    said = ["yes"]
    try:
        yield said
    except BaseException as error:
        said[0] = f"no: {type(error).__name__}"
        raise
    finally:
        if file := os.environ.get("ZOO_RESULTS"):
            line = {"case": str(case), "column": column, "said": said[0]}
            with Path(file).open("a") as out:
                out.write(json.dumps(line | {"version": importlib.metadata.version(case.library)}) + "\n")


def difference(one: Any, other: Any) -> float:
    """Return the largest difference of two states, relative to the numbers where these are above 1."""
    pairs = [(value, other[name]) for name, value in one.items() if value.is_floating_point()]
    return max(float(((own - its).abs() / its.abs().clamp(min=1)).max()) for own, its in pairs if own.numel())


def stacked(case: Case, iters: int = 4) -> float:
    """Train two members in a stack, and return how far the first is from its single run."""
    more = {"loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": iters}}
    fused = FusedRunner([config(case, **more), config(case, lr=0.02, **more)])
    fused.train()
    return difference(fused.all_members[0].model.state_dict(), trained(case, **more).model.state_dict())


def test_alone(case: Case) -> None:
    with told(case, "single"):
        runner = trained(case)
        assert runner.iter == 4
        assert all(torch.isfinite(value).all() for value in runner.model.state_dict().values())


def test_stacked(case: Case) -> None:
    with told(case, "stacked") as said:
        if case.alone is not None:
            with pytest.raises((Unfusable, RuntimeError, TypeError, AttributeError, ValueError), match=case.alone):
                stacked(case)
            said[0] = "one by one"
            return
        found = stacked(case)
        if found > BOUND:  # it has to be rounding, which later steps may magnify
            torch.set_default_dtype(torch.float64)
            try:
                assert stacked(case, iters=1) < ROUNDING
            finally:
                torch.set_default_dtype(torch.float32)
            said[0] = "yes (float64)"


def test_resumed(case: Case, tmp_path: Path) -> None:
    hooks = {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "interval": 2, "max_keep": 9}}
    with told(case, "resume"):
        whole = trained(case, hook=hooks, work_dir=str(tmp_path / "whole"))
        (saved,) = (tmp_path / "whole" / "checkpoints").glob("*2.pt")
        parts = trained(case, hook=hooks, work_dir=str(tmp_path / "parts"), resume=str(saved))
        ours = parts.model.state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in whole.model.state_dict().items())


def test_loaded_from_mlflow_and_served(case: Case, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow.pytorch")
    model = trained(case).model.eval()
    with told(case, "MLflow load"):
        mlflow.save_model(
            model, str(tmp_path / "model"), signature=False, pip_requirements=[], serialization_format="pickle"
        )
        loaded = mlflow.load_model(str(tmp_path / "model"))
        own = loaded.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    given = inputs(case.data)
    with told(case, "serve") as said:
        if given is None:
            said[0] = "no arrays"
            return
        served = ServedModel(loaded, predict).predict(given)
        with torch.no_grad():
            expected = predict(model, as_tensors(given))
        assert isinstance(expected, Tensor)
        np.testing.assert_array_equal(served, expected.numpy())


def as_tensors(given: Any) -> Any:
    if isinstance(given, dict):
        return {name: as_tensors(value) for name, value in given.items()}
    return torch.from_numpy(given)
