"""Runs and sweeps written by an earlier version: they are read, shipped and continued.

`written_before/runs.tar.xz` holds their directories, in which `/runs` stands for the folder of them all:

| directory | what it is |
|---|---|
| `single` | dropout, a schedule and EMA; killed after epoch 2 of 3 |
| `iterations` | `accumulate=2`; killed after iteration 9 of 14, with gradients that wait for a step |
| `fsdp` | two ranks; interrupted after iteration 10 of 36 |
| `tracked` | finished; MLflow has nothing of it yet |
| `sweep` | four jobs, two to a stack; killed with jobs 2 and 3 after epoch 2 of 3 |

`expected.json` says what each was to end with: parameters of the last checkpoint and of the best, and the points of its
journal. `TRAINYARD_SAME_BITS=1` compares parameters by their bits, which holds on the kind of CPU that made them.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from trainyard.cli import main
from trainyard.runner import Runner, checkpoint
from trainyard.track import RunInfo, read

ROOT = Path(__file__).parents[2]
WRITTEN = Path(__file__).parent / "written_before"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())
CLOSE = 1e-6
TEXTS = (".yaml", ".json", ".jsonl", ".txt", ".log")

Take = Callable[[str], Path]
Run = Callable[..., None]


@pytest.fixture
def take(tmp_path: Path) -> Take:
    """Put one of the directories into the test's folder, as if it had been written there."""

    def taken(name: str) -> Path:
        with tarfile.open(WRITTEN / "runs.tar.xz") as archive:
            members = [member for member in archive if f"{member.name}/".startswith(f"{name}/")]
            archive.extractall(tmp_path, members, filter="data")
        for file in (tmp_path / name).rglob("*"):
            if file.suffix in TEXTS and file.is_file():
                file.write_text(file.read_text().replace("/runs", str(tmp_path)))
        return tmp_path / name

    return taken


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run one of the project's programs in the test's folder."""

    def execute(script: str, *arguments: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
        done = forked.run(
            [sys.executable, str(ROOT / script) if script.endswith(".py") else script, *arguments],
            cwd=tmp_path,
            env=clean | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return execute


def resume(directory: Path, **overrides: Any) -> None:
    """Continue a run in this process, from the config that it has left."""
    config: Any = OmegaConf.load(directory / "config.yaml")
    config.hook.predictions.pop("format", None)  # there was a choice of two
    Runner.from_cfg(config, **{"work_dir": directory, "resume": True, **overrides}).train()


def newest(directory: Path) -> tuple[Path, dict[str, Any]]:
    found = checkpoint.newest(directory / "checkpoints")
    assert found is not None
    return found


def points(directory: Path) -> dict[str, float]:
    """The numbers in a journal by name and step, without the times, and without those that are recorded since."""
    found: dict[str, float] = {}
    for record, _ in read(directory / "metrics.jsonl"):
        for name, value in record.get("values", {}).items():
            if "time" not in name and not name.startswith("best/"):
                key = f"{name} {record['step']}"
                assert key not in found, f"{key} was recorded twice"
                found[key] = value
    return found


def assert_weights(found: Mapping[str, Tensor], expected: dict[str, Any], same_bits: bool = True) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.flatten().tolist() == pytest.approx(expected[name]["values"], abs=CLOSE, rel=CLOSE), name
        if same_bits and os.environ.get("TRAINYARD_SAME_BITS"):
            assert hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() == expected[name]["sha256"], name


def assert_ended(directory: Path, name: str, same_bits: bool = True) -> None:
    """The run has come to the end that it would have had undisturbed."""
    expected, folder = EXPECTED[name], directory / "checkpoints"
    last, best = (checkpoint.load(folder / file) for file in (checkpoint.read_last(folder)[-1], "best.pt"))
    assert (last["epoch"], last["iter"]) == (expected["epoch"], expected["iter"])
    assert_weights(last["model"], expected["last"], same_bits)
    assert_weights(best.get("eval_model", best["model"]), expected["best"], same_bits)
    own = {key: value for key, value in expected["points"].items() if not key.startswith("test/")}
    found = {key: value for key, value in points(directory).items() if not key.startswith("test/")}
    assert found == pytest.approx(own, abs=CLOSE, rel=CLOSE)


@pytest.mark.slow
def test_a_run_alone(take: Take, run: Run) -> None:
    directory = take("single")
    overrides = [str(entry) for entry in OmegaConf.load(directory / ".hydra/overrides.yaml")]
    run("train.py", *overrides, f"hydra.run.dir={directory}", "resume=true")
    assert_ended(directory, "single")
    assert points(directory) == pytest.approx(EXPECTED["single"]["points"], abs=CLOSE, rel=CLOSE)


def test_gradients_that_wait_for_a_step(take: Take) -> None:
    directory = take("iterations")
    _, state = newest(directory)
    assert all(gradient is not None for gradient in state["step"]["gradients"])
    resume(directory)
    assert_ended(directory, "iterations")


def test_two_ranks_go_on_as_one(take: Take) -> None:
    directory = take("fsdp")
    folder, state = newest(directory)
    assert folder.is_dir()
    assert state["iter"] == 10
    resume(directory, strategy=None)
    _, state = newest(directory)
    assert (state["epoch"], state["iter"]) == (6, 36)
    assert_weights(state["model"], EXPECTED["fsdp"]["last"], same_bits=False)


def test_a_member_of_a_stack_goes_on_alone(take: Take) -> None:
    directory = take("sweep/2")
    resume(directory)
    assert_ended(directory, "sweep/2", same_bits=False)


@pytest.mark.slow
def test_a_sweep(take: Take, run: Run) -> None:
    directory = take("sweep")
    done = {num: (directory / f"{num}/checkpoints/best.pt").read_bytes() for num in (0, 1)}
    run("-m", "trainyard", "sweep", "resume", str(directory), "--app", str(ROOT / "train.py"))
    for num in range(4):
        assert_ended(directory / str(num), f"sweep/{num}")
    assert done == {num: (directory / f"{num}/checkpoints/best.pt").read_bytes() for num in (0, 1)}
    with (directory / "results.csv").open() as file:
        rows = {int(row["job"]): row for row in csv.DictReader(file)}
    assert {num: row["state"] for num, row in rows.items()} == dict.fromkeys(range(4), "done")
    for num, row in rows.items():
        assert float(row["best/val/accuracy"]) == pytest.approx(EXPECTED[f"sweep/{num}"]["objective"])


def test_the_journal(take: Take) -> None:
    directory = take("tracked")
    assert points(directory) == pytest.approx(EXPECTED["tracked"]["points"])
    records = [record for record, _ in read(directory / "metrics.jsonl")]
    assert [record["status"] for record in records if record["kind"] == "status"] == ["RUNNING", "FINISHED"]
    assert RunInfo.read(directory).params["optim.lr"] == "0.05"


def test_the_loader_that_the_journal_names(take: Take) -> None:
    directory = take("tracked")
    (record,) = (record for record, _ in read(directory / "metrics.jsonl") if record["kind"] == "model")
    module, _, function = record["loader"].partition(":")
    model, example = getattr(importlib.import_module(module), function)(directory, directory / record["checkpoint"])
    assert_weights(model.state_dict(), EXPECTED["tracked"]["best"])
    assert model(torch.from_numpy(example)).shape == (1, 2)


@pytest.mark.slow
def test_its_way_to_mlflow(take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = take("tracked")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # which `set_tracking_uri` sets too
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the shipper adds the folders in run.json
    with pytest.raises(SystemExit, match="0"):  # in this process: MLflow is imported once
        main(["sync", "--trust", str(directory)])

    import mlflow

    mlflow.set_tracking_uri(uri)
    runs: Any = mlflow.search_runs(search_all_experiments=True, output_format="list")
    (found,) = runs
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.05"
    latest = {key.partition(" ")[0]: value for key, value in EXPECTED["tracked"]["points"].items()}
    assert {name: found.data.metrics[name] for name in latest} == pytest.approx(latest)
    model = mlflow.pytorch.load_model(f"runs:/{found.info.run_id}/model")
    assert_weights(model.state_dict(), EXPECTED["tracked"]["best"])
