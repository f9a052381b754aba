import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_files import open_files

from trainyard.errors import TrainyardError
from trainyard.files import DiskFullError
from trainyard.track import Journal, read
from trainyard.track.journal import FILE, being_written

SOME = settings(max_examples=50)
NAMES = st.sampled_from(["train/loss", "val/accuracy", "lr"])
VALUES = st.dictionaries(NAMES, st.floats(), min_size=1)
POINTS = st.lists(st.tuples(st.integers(0, 10), VALUES), max_size=20)


def records(path: Path) -> list[dict[str, Any]]:
    return [record for record, _ in read(path)]


def strict(line: bytes) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


@SOME
@given(points=POINTS)
def test_values_survive_strict_json(points: list[tuple[int, dict[str, float]]]) -> None:
    with TemporaryDirectory() as folder:
        with Journal(folder) as journal:
            for step, values in points:
                journal.metrics(step, values, epoch=step // 2)
        path = Path(folder, FILE)
        for line in path.read_bytes().splitlines():
            assert strict(line)["kind"] == "metrics"
        found = records(path)
        assert [(record["step"], record["epoch"]) for record in found] == [(step, step // 2) for step, _ in points]
        for record, (_, values) in zip(found, points, strict=True):
            assert repr(record["values"]) == repr(values)  # repr: NaN is not equal to itself


def at_once(journal: Journal, points: list[tuple[int, dict[str, float]]]) -> None:
    journal.points([(step, step // 2, 1.5, tuple(values), list(values.values())) for step, values in points])


ODD = st.dictionaries(st.sampled_from(["train/loss", 'a "%s": nan', 'é":nan', "lr"]), st.floats(), min_size=1)


@SOME
@given(before=POINTS, points=st.lists(st.tuples(st.integers(0, 10), ODD), max_size=20))
def test_points_together_are_as_points_one_by_one(
    before: list[tuple[int, dict[str, float]]], points: list[tuple[int, dict[str, float]]]
) -> None:
    """Also where a journal is continued, which has some of them."""
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        for folder in (one, two):
            with Journal(folder) as journal:
                for step, values in before:
                    journal.metrics(step, values, epoch=0)
        with Journal(one) as journal:
            for step, values in points:
                journal.metrics(step, values, epoch=step // 2)
        with Journal(two) as journal:
            at_once(journal, points)
        texts = [Path(folder, FILE).read_text() for folder in (one, two)]
        assert re.sub(r'"time":[\d.]+', "", texts[0]) == re.sub(r'"time":[\d.]+', "", texts[1])
        for line in texts[1].splitlines():
            strict(line.encode())


def test_every_kind_of_record(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with Journal(tmp_path) as journal:
        journal.status("RUNNING")
        journal.metrics(3, {"loss": np.float32(0.5), "count": 7})
        journal.array("val/confusion", 3, np.array([[1.0, math.nan], [0.0, -math.inf]]))
        journal.artifact("checkpoints/best.pt", to="checkpoints")
        journal.artifact(tmp_path / "train.log")
        journal.model("checkpoints/best.pt", "module:function")
        journal.params({"lr": 0.1})
        journal.tags({"note": None})
        journal.status("FAILED", "out of memory")
    found = records(tmp_path / FILE)
    times = [record.pop("time") for record in found]
    assert times == sorted(times)
    array = found.pop(2)
    assert repr(array["value"]) == repr([[1.0, math.nan], [0.0, -math.inf]])
    assert (array["name"], array["step"]) == ("val/confusion", 3)
    assert found == [
        {"kind": "status", "status": "RUNNING", "message": ""},
        {"kind": "metrics", "step": 3, "values": {"loss": 0.5, "count": 7.0}},
        {"kind": "artifact", "path": "checkpoints/best.pt", "to": "checkpoints"},
        {"kind": "artifact", "path": "train.log", "to": ""},
        {"kind": "model", "checkpoint": "checkpoints/best.pt", "loader": "module:function"},
        {"kind": "params", "params": {"lr": "0.1"}},
        {"kind": "tags", "tags": {"note": "None"}},
        {"kind": "status", "status": "FAILED", "message": "out of memory"},
    ]


def test_one_write_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []
    write = os.write
    with Journal(tmp_path) as journal:
        monkeypatch.setattr(os, "write", lambda fd, line: lines.append(line) or write(fd, line))  # type: ignore[func-returns-value]
        journal.metrics(1, {"loss": math.inf})
        journal.metrics(2, {})
        journal.status("FINISHED")
        at_once(journal, [(3, {"loss": 1.0}), (4, {"loss": math.nan}), (5, {"loss": 0.5, "norm": 1.0})])
        at_once(journal, [])
        monkeypatch.undo()
    assert len(lines) == 3
    assert lines.pop().count(b"\n") == 3
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert (tmp_path / FILE).read_bytes().startswith(b"".join(lines))


def test_only_files_of_the_run(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal, pytest.raises(ValueError, match="outside"):
        journal.artifact("/etc/hostname")


def test_no_journal_is_empty(tmp_path: Path) -> None:
    assert records(tmp_path / FILE) == []


@SOME
@given(points=POINTS, part=st.floats(0, 1))
def test_a_torn_tail_is_left_and_cut(points: list[tuple[int, dict[str, float]]], part: float) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        with Journal(folder) as journal:
            for step, values in points:
                journal.metrics(step, values)
        whole = list(read(path))
        cut = int(part * path.stat().st_size)
        os.truncate(path, cut)
        kept = [item for item in whole if item[1] <= cut]
        assert repr(list(read(path))) == repr(kept)
        for index, (_, end) in enumerate(kept):  # from any record on, the rest follows
            assert repr(list(read(path, end))) == repr(kept[index + 1 :])
        with Journal(folder) as journal:
            journal.tags({"after": "cut"})
        assert path.read_bytes().endswith(b"\n")
        assert repr(records(path)[:-1]) == repr([record for record, _ in kept])
        assert records(path)[-1]["tags"] == {"after": "cut"}


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
    path = tmp_path / FILE
    with path.open("ab") as file:
        file.write(
            b'\0\0\0\n[1]\n{"kind": "metrics"}\n{"kind": "metrics", "time": 1, "step": 2, "values": {"a": []}}\n'
        )
    with Journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
        journal.metrics(2, {"loss": 2.0})
    assert [record["step"] for record in records(path)] == [1, 2]


@SOME
@given(kills=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=4))
def test_a_resumed_run_logs_each_point_once(kills: list[tuple[int, int]]) -> None:
    """Each run goes from a checkpoint to where it is killed; the last one to the end."""
    with TemporaryDirectory() as folder:
        reached = -1
        for checkpoint, last in [*kills, (12, 12)]:
            with Journal(folder) as journal:
                for step in range(min(checkpoint, reached + 1), last + 1):
                    reached = max(reached, step)
                    journal.metrics(step, {"loss": 1.0 + step})
                    if step % 4 == 0:
                        journal.metrics(step, {"val/accuracy": step / 12})
                        journal.array("confusion", step, [[step]])
        found = records(Path(folder, FILE))
        for kind, steps in (("loss", range(13)), ("val/accuracy", range(0, 13, 4))):
            assert [record["step"] for record in found if kind in record.get("values", {})] == list(steps)
        assert [record["step"] for record in found if record["kind"] == "array"] == [0, 4, 8, 12]


def test_a_resumed_run_fills_what_is_missing(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for step in range(1, 8):
            journal.metrics(step, {"loss": float(step)})
    with Journal(tmp_path) as journal:  # from the checkpoint of step 4, with a metric that is new
        for step in range(5, 11):
            journal.metrics(step, {"loss": float(step), "new": 0.0})
    found = records(tmp_path / FILE)
    assert [record["step"] for record in found if "loss" in record["values"]] == list(range(1, 11))
    assert [record["step"] for record in found if "new" in record["values"]] == list(range(5, 11))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / FILE
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
        size = path.stat().st_size
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
            with pytest.raises(DiskFullError, match=r"File too large\. Raise the limit"):
                journal.metrics(2, {"loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert path.stat().st_size == size
        journal.metrics(3, {"loss": 3.0})
    assert [record["step"] for record in records(path)] == [1, 3]


def test_a_journal_that_nobody_closes_leaves_no_open_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.status("RUNNING")
    assert open_files(tmp_path) == [tmp_path / FILE]
    journal.close()
    journal.close()
    assert open_files(tmp_path) == []
    forgotten = Journal(tmp_path)
    assert open_files(tmp_path) == [tmp_path / FILE]
    del forgotten
    assert open_files(tmp_path) == []


def test_one_writer(tmp_path: Path, environment: dict[str, str]) -> None:
    """The lock is the trainer's alone: it ends with it, also where a forked data loader lives on."""
    trainer = f"""
import os, time
from trainyard.track import Journal
journal = Journal({str(tmp_path)!r})
loader = os.fork()
if loader == 0:
    time.sleep(3600)
print(loader, flush=True)
time.sleep(3600)
"""
    path = tmp_path / FILE
    assert not being_written(path)
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        loader = int(process.stdout.readline())
        try:
            assert being_written(path)
            with pytest.raises(TrainyardError, match="another process is using this directory"):
                Journal(tmp_path)
            process.kill()
            process.wait()
            assert not being_written(path)
            Journal(tmp_path).close()
        finally:
            process.kill()
            os.kill(loader, signal.SIGKILL)
