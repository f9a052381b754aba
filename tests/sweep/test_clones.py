"""The checkpoint that a clone begins from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.clones import Clones, start_of
from trainyard.sweep.directories import Places
from trainyard.sweep.events import FIRST_CLONE, Origin, Proposed
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job

CONFIG: Any = None


class Configs:
    """Makes jobs without composing a config."""

    def __init__(self, directory: Path, work_dir: str | None) -> None:
        self.directory = directory
        self.work_dir = work_dir

    def checked(self, overrides: Any, numbers: Any, subdirs: Any, origins: Any) -> Any:
        for num, own in zip(numbers, overrides, strict=True):
            folder, subdir, origin = self.directory / subdirs[num], subdirs[num], origins[num]
            yield Job(num, own, CONFIG, folder, {}, 1, self.work_dir, subdir, {"chdir": False}, origin), None


class Application:
    def changed(self, before: Any, after: Any, *, ended: bool) -> list[str]:
        return ["optim.lr"]


@pytest.fixture
def source(tmp_path: Path) -> Job:
    manifest = Manifest.open(tmp_path)
    manifest.define(3, ["seed=3"], "3")
    return Job(3, ("seed=3",), CONFIG, tmp_path / "3", {})


def clones(directory: Path, work_dir: str | None = None, places: Places | None = None) -> tuple[Clones, Manifest]:
    manifest = Manifest.open(directory)
    configs = Configs(directory, work_dir)
    made: Any = Clones(Application(), configs, manifest, directory, Places() if places is None else places)
    return made, manifest


def save(job: Job, *names: str, shards: bool = False) -> None:
    folder = job.directory / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if shards:
            (folder / name).mkdir()
        (folder / name / "0" if shards else folder / name).write_text(name)
    (folder / "last.json").write_text(json.dumps({"last": names[-1], "history": names}))


@pytest.mark.parametrize("shards", [False, True])
def test_it_is_kept_whatever_becomes_of_the_job(tmp_path: Path, source: Job, shards: bool) -> None:
    save(source, "epoch_0001.pt", "epoch_0002.pt", shards=shards)
    made, manifest = clones(tmp_path)
    job, proposed = made.make(source, ["optim.lr=1"])
    assert proposed.origin == Origin(3, 3, ("optim.lr",), "epoch_0002.pt")
    assert (job.num, job.number, job.overrides) == (FIRST_CLONE, 3, ("seed=3", "optim.lr=1"))
    kept = tmp_path / f"{FIRST_CLONE}/start/epoch_0002.pt"
    assert start_of(job) == str(kept)
    for file in (source.directory / "checkpoints").rglob("*"):
        file.unlink() if file.is_file() else None
    assert (kept / "0" if shards else kept).read_text() == "epoch_0002.pt"
    manifest.define_all([proposed])
    again = Manifest.open(tmp_path)
    assert again.entries[FIRST_CLONE].origin == proposed.origin
    assert (again.next_num, again.next_clone) == (4, FIRST_CLONE + 1)
    save(job, "epoch_0003.pt")
    assert start_of(job) is True, "its own"


def test_a_clone_that_was_not_logged_is_made_anew(tmp_path: Path, source: Job) -> None:
    save(source, "epoch_0001.pt")
    made, _ = clones(tmp_path)
    made.make(source, ["optim.lr=1"])
    save(source, "epoch_0002.pt")
    _, proposed = made.make(source, ["optim.lr=2"])
    assert isinstance(proposed, Proposed)
    assert proposed.num == FIRST_CLONE
    assert [file.name for file in (tmp_path / f"{FIRST_CLONE}/start").iterdir()] == ["epoch_0002.pt"]


def test_a_job_without_a_checkpoint_leaves_nothing(tmp_path: Path, source: Job) -> None:
    made, _ = clones(tmp_path)
    with pytest.raises(TrainyardError, match="#3 has no checkpoint to start from"):
        made.make(source, ["optim.lr=1"])
    assert not (tmp_path / str(FIRST_CLONE)).exists()


def test_a_clone_does_not_write_to_the_directory_of_another_job(tmp_path: Path, source: Job) -> None:
    """A sweep with such a clone could not be continued, because its jobs would share a directory."""
    save(source, "epoch_0001.pt")
    places = Places()
    places.take([source])
    made, manifest = clones(tmp_path, str(tmp_path / "own"), places)
    job, proposed = made.make(source, ["work_dir=own"])
    places.take([job])
    manifest.define_all([proposed])
    with pytest.raises(ConfigError, match=rf"work_dir: .* #{FIRST_CLONE} writes to this directory. Set another work"):
        made.make(source, ["work_dir=own"])
    made, _ = clones(tmp_path, str(source.directory), places)
    with pytest.raises(ConfigError, match=r"work_dir: .* #3 writes to this directory. Set another work_dir"):
        made.make(source, ["work_dir=3"])
