import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import TrainyardError
from trainyard.files import DiskFullError
from trainyard.sweep.manifest import FILE, Manifest

states = st.sampled_from(["running", "done", "failed", "interrupted", "lost", "timeout"])


def _write(directory: Any, history: Any) -> Any:
    manifest = Manifest(directory / FILE)
    for num in range(3):
        manifest.define(num, [f"optim.lr={num}"])
    for num, state in history:
        manifest.note(num, state, seconds=1.5, objective=0.5, error=None)
    return manifest


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), states), max_size=12), st.floats(0, 1))
def test_a_file_cut_off_at_any_byte_tells_what_was_whole(
    tmp_path_factory: pytest.TempPathFactory, history: Any, share: float
) -> None:
    directory = tmp_path_factory.mktemp("sweep")
    whole = _write(directory, history)
    content = (directory / FILE).read_bytes()
    cut = int(len(content) * share)
    (directory / FILE).write_bytes(content[:cut])
    lines = content[:cut].count(b"\n")
    manifest = Manifest.open(directory)
    assert len(manifest.entries) == min(lines, 3)
    last = {}
    for num, state in history[: max(lines - 3, 0)]:
        last[num] = state
    assert {num: entry.state for num, entry in manifest.entries.items() if entry.state != "waiting"} == last
    for num in range(3):  # and it can be written on
        manifest.define(num, [f"optim.lr={num}"])
    for num, state in history[max(lines - 3, 0) :]:
        manifest.note(num, state, seconds=1.5, objective=0.5, error=None)
    assert Manifest.open(directory).entries == whole.entries


def test_another_definition_is_refused(tmp_path: Path) -> None:
    manifest = _write(tmp_path, [])
    manifest.define(1, ["optim.lr=1"])
    with pytest.raises(TrainyardError, match="contains another sweep: its job 1"):
        manifest.define(1, ["optim.lr=7"])


def test_a_grid_must_contain_all_jobs_of_the_sweep(tmp_path: Path) -> None:
    jobs = [[f"optim.lr={num}"] for num in range(6)]
    _write(tmp_path, []).begin(None, grid=5)  # of which three are recorded
    manifest = Manifest.open(tmp_path)
    manifest.check_grid(jobs)
    manifest.check_grid(jobs[:5])
    with pytest.raises(
        TrainyardError,
        match=r"contains a sweep of 5 jobs, but this command has only 4 jobs\. To continue the sweep, run",
    ):
        manifest.check_grid(jobs[:4])
    with pytest.raises(TrainyardError, match="contains another sweep: its job 2"):
        manifest.check_grid([*jobs[:2], *jobs[3:]])
    size = manifest.path.stat().st_size
    manifest.begin(None, grid=4)
    assert manifest.path.stat().st_size == size
    manifest.begin(None, grid=6)
    assert Manifest.open(tmp_path).grid == 6
    manifest.clear()
    manifest.check_grid(jobs[:1])


def test_forgetting(tmp_path: Path) -> None:
    manifest = _write(tmp_path, [(0, "done"), (1, "done"), (2, "done")])
    assert manifest.is_done(range(3))
    assert not manifest.is_done(range(4))
    manifest.clear()
    assert Manifest.open(tmp_path).entries == {}


def test_a_full_disk_leaves_whole_lines_and_says_how_to_continue(tmp_path: Path) -> None:
    manifest = Manifest.open(tmp_path)
    manifest.define(0, ["seed=0"])
    before = manifest.path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))
    try:
        with pytest.raises(
            DiskFullError,
            match=rf"manifest\.jsonl could not be written: .* use the same command with hydra.sweep.dir={tmp_path}\.",
        ) as error:
            manifest.define(1, ["seed=1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert manifest.path.read_bytes() == before
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # as it comes from another process
    manifest.define(1, ["seed=1"])
    assert list(Manifest.open(tmp_path).entries) == [0, 1]
