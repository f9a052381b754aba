"""The checkpoint that a clone begins from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import TrainyardError
from trainyard.sweep.clones import Clones, start_of
from trainyard.sweep.events import FIRST_CLONE, Origin, Proposed
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job

CONFIG: Any = None


class Configs:
    """Makes jobs without composing a config."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def checked(self, overrides: Any, numbers: Any, subdirs: Any, origins: Any) -> Any:
        for num, own in zip(numbers, overrides, strict=True):
            yield (
                Job(num, own, CONFIG, self.directory / subdirs[num], {}, subdir=subdirs[num], origin=origins[num]),
                None,
            )


class Application:
    def changed(self, before: Any, after: Any, *, ended: bool) -> list[str]:
        return ["optim.lr"]


@pytest.fixture
def source(tmp_path: Path) -> Job:
    manifest = Manifest.open(tmp_path)
    manifest.define(3, ["seed=3"], "3")
    return Job(3, ("seed=3",), CONFIG, tmp_path / "3", {})


def clones(directory: Path) -> tuple[Clones, Manifest]:
    manifest = Manifest.open(directory)
    made: Any = Clones(Application(), Configs(directory), manifest, directory)
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
