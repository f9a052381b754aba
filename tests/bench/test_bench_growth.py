"""The benchmarks of growth: their sides at the smallest sizes, and copies of runs in MLflow's database."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # the processes import this file by name


def session(folder: Path, rounds: int = 1) -> Any:
    from measure import Session

    return Session(rounds=rounds, quick=True, full=False, device="cpu", folder=folder)


def test_sides_with_several_figures(tmp_path: Path) -> None:
    from measure import several_figures

    rounds = iter(range(10))

    def whole(offset: float) -> Mapping[str, float]:
        return {"time": offset, "memory": offset + 1.0}

    def broken() -> Mapping[str, float]:
        if next(rounds):
            raise RuntimeError("no more")
        return {"time": 1.0}

    sides = {"a": partial(whole, 1.0), "b": partial(whole, 5.0), "c": broken}
    figures, failed = several_figures(session(tmp_path, 2), sides)
    assert figures == {"time": {"a": [1.0] * 2, "b": [5.0] * 2}, "memory": {"a": [2.0] * 2, "b": [6.0] * 2}}
    assert failed == {"c": "RuntimeError: no more"}, "the figures of its first round are dropped"


def process() -> dict[str, float]:
    print("not shown")
    return {"pid": float(os.getpid())}


def killed() -> dict[str, float]:
    os._exit(9)


def test_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    from measure import in_a_process

    module = __import__(Path(__file__).stem)
    pids = {in_a_process(module.process)["pid"] for _ in range(2)}
    assert len(pids - {os.getpid()}) == 2
    assert "not shown" not in capfd.readouterr().out
    with pytest.raises(BrokenProcessPool):
        in_a_process(module.killed)


def test_titles_are_those_of_cases() -> None:
    from report import TITLES

    from run import CASES

    assert set(TITLES) <= set(CASES)


def test_a_member_of_a_stack() -> None:
    from cases import growth

    for width in (1, 4):
        with growth.stack(width, 0.01) as turn:
            assert turn() > 0


def test_runs_are_copied(tmp_path: Path) -> None:
    """MLflow finds the copies like runs of its own, with all that they log."""
    import mlflow
    import numpy as np
    from cases.growth_of_runs import copy_runs, finished
    from mlflow import MlflowClient

    database = tmp_path / "mlflow.db"
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("bench", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment, tags={"kind": "run"}).info.run_id
    client.log_param(run, "optim.lr", "0.1")
    for step in range(3):
        client.log_metric(run, "val/loss", 3.0 - step, step=step)
    data = mlflow.data.from_numpy(np.zeros(3))  # type: ignore[attr-defined]
    client.log_inputs(run, [mlflow.entities.DatasetInput(data._to_mlflow_entity())])
    client.set_terminated(run)

    copy_runs(database, 5)
    assert finished(database) == 6
    found = client.search_runs([experiment], "metrics.`val/loss` = 1.0 and tags.kind = 'run'")
    assert len({each.info.run_id for each in found}) == 6
    for each in found:
        assert each.data.params == {"optim.lr": "0.1"}
        assert len(each.inputs.dataset_inputs) == 1
        assert [point.value for point in client.get_metric_history(each.info.run_id, "val/loss")] == [3.0, 2.0, 1.0]


def test_a_checkpoint_of_a_size(tmp_path: Path) -> None:
    from cases.growth_of_state import Size, measured

    figures = measured(tmp_path, Size(width=256, layers=2, saves=2))
    assert figures.keys() == {"stall", "memory", "resumed", "begun"}
    assert min(figures[name] for name in ("stall", "resumed", "begun")) > 0
    assert not any(tmp_path.iterdir()), "the files are removed"


def test_samples_of_a_validation() -> None:
    from cases.growth_of_validation import validate
    from measure import in_a_process

    assert min(in_a_process(validate, 1000).values()) > 0


def test_jobs_of_a_sweep(tmp_path: Path) -> None:
    from cases.growth_of_sweeps import sweep

    assert min(sweep(tmp_path, 10).values()) > 0
    assert not any(tmp_path.iterdir())


def test_iterations_are_timed(tmp_path: Path) -> None:
    from cases import compiled
    from measure import in_a_process
    from work import Work

    work = Work(samples=640, epochs=2)
    for side in (compiled.trainyard, compiled.plain):
        assert min(in_a_process(compiled.timed, side, work, False, str(tmp_path)).values()) > 0
