"""What the manifest of a sweep says, read while another process writes it."""

import fcntl
import json
import os
from pathlib import Path

import pytest
import yaml

from trainyard.catalog.stored_sweep import StoredSweep, find_sweeps
from trainyard.errors import ConfigError

RECORDS = [
    {"kind": "manifest", "format": 2},
    {"kind": "began", "time": 100.0},
    {"kind": "job", "num": 0, "overrides": ["data=rings", "+optim.lr=0.1"], "subdir": "0"},
    {"kind": "job", "num": 1, "overrides": ["data=rings", "+optim.lr=0.2"], "subdir": None},
    {"kind": "queued", "units": [[0], {"nums": [1]}], "time": 100.0},
    {"kind": "state", "num": 0, "state": "running", "attempt": 1, "time": 101.0},
    {"kind": "state", "num": 0, "state": "done", "seconds": 2.0, "objective": 0.9, "error": None, "time": 103.0},
    {"kind": "state", "num": 1, "state": "running", "attempt": 1, "time": 103.0},
]


def lines(*records: object) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "multirun" / "one"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "config.yaml").write_text(yaml.safe_dump({"objective": "val/accuracy", "direction": "maximize"}))
    (folder / "manifest.jsonl").write_text(lines(*RECORDS))
    return folder


def test_jobs_states_and_what_varies(directory: Path) -> None:
    sweep = StoredSweep.read(directory)
    assert sweep.started == 100.0
    assert sweep.counts() == "1 done, 1 running"
    assert (sweep.objective, sweep.direction) == ("val/accuracy", "maximize")
    rows = sweep.rows()
    assert [row.overrides for row in rows] == [{"optim.lr": "0.1"}, {"optim.lr": "0.2"}]
    assert [row.directory for row in rows] == [directory / "0", directory / "1"]
    assert [row.objective for row in rows] == [0.9, None]


def test_whether_the_jobs_have_a_seed(directory: Path) -> None:
    sweep = StoredSweep.read(directory)
    assert sweep.has_seed, "unknown"
    for config, has_seed in (({"seed": 0}, True), ({"seed": None}, False), ({"x": 0}, False)):
        (directory / "multirun.yaml").write_text(yaml.safe_dump(config))
        assert sweep.has_seed == has_seed


def test_it_is_read_on_from_where_it_ended(directory: Path) -> None:
    sweep = StoredSweep.read(directory)
    assert sweep.read_on() == []
    end = lines({"kind": "state", "num": 1, "state": "failed", "error": "no", "time": 104.0})
    with (directory / "manifest.jsonl").open("a") as file:
        file.write("no record\n" + end[:20])
        file.flush()
        assert sweep.read_on() == []
        file.write(end[20:])
    assert [(job.num, job.state, job.error) for job in sweep.read_on()] == [(1, "failed", "no")]


def test_reading_changes_nothing(directory: Path) -> None:
    """A torn line is that of a process that writes."""
    with (directory / "manifest.jsonl").open("a") as file:
        file.write('{"kind": "sta')
    before = (directory / "manifest.jsonl").read_bytes()
    assert StoredSweep.read(directory).counts() == "1 done, 1 running"
    assert (directory / "manifest.jsonl").read_bytes() == before


def test_a_job_that_goes_on_keeps_its_best_so_far(directory: Path) -> None:
    with (directory / "manifest.jsonl").open("a") as file:
        file.write(lines({"kind": "state", "num": 0, "state": "running", "attempt": 2, "time": 200.0}))
    job = StoredSweep.read(directory).jobs[0]
    assert (job.state, job.objective, job.seconds) == ("running", 0.9, 2.0)


def test_members_of_a_population_have_their_last_values_and_are_not_repeats(directory: Path) -> None:
    (directory / "manifest.jsonl").write_text(
        lines(
            {"kind": "proposer", "identity": {"sweeper": "pbt"}},
            {"kind": "job", "num": 0, "overrides": ["lr=0.1", "seed=0"], "subdir": "0"},
            {"kind": "job", "num": 1, "overrides": ["lr=0.2", "seed=1"], "subdir": "1"},
            {"kind": "inherited", "num": 1, "source": 0, "at": 2, "keys": [], "overrides": ["lr=0.1", "seed=0"]},
        )
    )
    rows = StoredSweep.read(directory).rows()
    assert [row.overrides for row in rows] == [{"lr": "0.1", "seed": "0"}] * 2
    assert rows[0].history != rows[1].history


def test_a_command_that_begins_again_runs_nothing_of_before(directory: Path) -> None:
    with (directory / "manifest.jsonl").open("a") as file:
        file.write(lines({"kind": "began", "time": 200.0}))
    sweep = StoredSweep.read(directory)
    assert sweep.counts() == "1 done, 1 waiting"
    assert sweep.started == 100.0


def test_a_sweep_runs_while_its_manifest_is_locked(directory: Path) -> None:
    sweep = StoredSweep.read(directory)
    assert not sweep.running
    fd = os.open(directory / "manifest.jsonl", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert sweep.running
    finally:
        os.close(fd)
    assert not sweep.running


def test_sweeps_are_found(directory: Path, tmp_path: Path) -> None:
    assert [sweep.directory for sweep in find_sweeps([tmp_path, directory.parent])] == [directory]
    with pytest.raises(ConfigError, match="sweep ls"):
        StoredSweep.read(tmp_path)
