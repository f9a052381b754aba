"""`trainyard reproduce` of a member of a population: as all that it went on as, in their lanes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from waiting import LIMIT

from trainyard.catalog.lineage import Segment, lineage_of
from trainyard.catalog.stored_run import StoredRun
from trainyard.errors import TrainyardError
from trainyard.track.run_info import RunInfo

ROOT = Path(__file__).parents[2]
SWEEP = [
    "-m", "hydra/sweeper=pbt", "hydra.sweeper.population=6", "hydra.sweeper.interval=1", "hydra.sweeper.quantile=0.5",
    "loop.max_epochs=3", "data=rings", "data.num_samples=300", "model.hidden=[8]", "model.dropout=0.1", "tracker=none",
    "hydra.launcher.max_jobs=1", "hydra.launcher.fuse=4", "optim.lr=tag(log,interval(1e-3,1e-1))",
    "optim.weight_decay=interval(0,0.1)", "hook.logger.interval=2", "hydra.sweep.dir=sweep",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A population of six members in four lanes."""
    folder = tmp_path_factory.mktemp("population")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = forked.run([sys.executable, str(ROOT / "train.py"), *SWEEP], cwd=folder, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started ") == 1, "one process, whatever generation"
    return folder / "sweep"


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Any, **options: Any) -> int:
        env = options["env"] | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        return forked.run(command, cwd=options["cwd"], env=env, timeout=LIMIT).returncode

    monkeypatch.setattr("trainyard.cli.reproduce.run_to_end", run)


def lineage(sweep: Path, num: int) -> list[Segment]:
    return lineage_of(StoredRun(sweep / str(num), RunInfo.read(sweep / str(num))))


def longest(sweep: Path) -> int:
    """Return the member that was most others before."""
    return max(range(6), key=lambda num: (len({segment.num for segment in lineage(sweep, num)}), num))


def test_lanes_stay_for_members_that_come_back(sweep: Path) -> None:
    records = [json.loads(line) for line in (sweep / "manifest.jsonl").read_text().splitlines()]
    placed = [task for each in records if each["kind"] == "decisions" for task in each["tasks"] if "lanes" in task]
    assert {task["width"] for task in placed if max(task["epochs"]) < 2} == {4}


@pytest.mark.usefixtures("_forked")
def test_a_lineage_is_reproduced_to_the_bit(trainyard: Any, sweep: Path, tmp_path: Path) -> None:
    num = longest(sweep)
    segments = lineage(sweep, num)
    assert len({segment.num for segment in segments}) > 1, "it went on as another"
    status, found, said = trainyard("reproduce", sweep / str(num), "--to", tmp_path / "again", "--json", cwd=sweep)
    assert status == 0, (found, said)
    assert found["weights"] == []
    assert found["points"] > 3
    assert any("the original run continued from the checkpoint of another job" in note for note in found["notes"])


def test_without_an_ancestor_s_config_it_says_so(trainyard: Any, sweep: Path, tmp_path: Path) -> None:
    copy = tmp_path / "sweep"
    shutil.copytree(sweep, copy)
    num = longest(copy)
    first = lineage(copy, num)[0]
    first.config.unlink()
    with pytest.raises(
        TrainyardError, match=rf"Job #{first.num} cannot be repeated, because its config .* does not exist"
    ):
        lineage(copy, num)


@pytest.mark.usefixtures("_forked")
def test_a_job_of_a_stack_without_free_lanes_is_trained_alone(trainyard: Any, tmp_path: Path) -> None:
    given = [
        "-m", "seed=0,1", "hook=norms", "loop.max_epochs=2", "data=rings", "data.num_samples=300", "model.hidden=[8]",
        "tracker=none", "hydra.launcher.fuse=2", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = forked.run([sys.executable, str(ROOT / "train.py"), *given], cwd=tmp_path, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep"
    assert [segment.width for segment in lineage(sweep, 1)] == [2]
    status, found, said = trainyard("reproduce", sweep / "1", "--to", tmp_path / "again", "--json", cwd=tmp_path)
    assert status in (0, 3), said
    log = (tmp_path / "again" / "train.log").read_text()
    assert "Training job #1 alone, because a stack of this job cannot have free lanes: hook.norms (Norms)" in log
    assert any("the original run was trained in a stack with other runs" in note for note in found["notes"])
