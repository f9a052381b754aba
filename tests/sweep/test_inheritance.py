"""Jobs that go on as others: their files, whatever is killed meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainyard.errors import TrainyardError
from trainyard.sweep.clones import newest_linked
from trainyard.sweep.events import Inherited
from trainyard.sweep.inheritance import FOLDER, OWN, begin, config_until
from trainyard.sweep.plan import Job


def job(num: int, folder: Path, *names: str) -> Job:
    """Return a job with checkpoints of these names, each of which has its own name as content."""
    found = Job(num, (), lambda job: None, folder / str(num))
    write(found, *names)
    return found


def write(job: Job, *names: str) -> None:
    checkpoints = job.directory / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for name in names:
        (checkpoints / name).write_text(f"{job.num}/{name}")
    (checkpoints / "last.json").write_text(json.dumps({"history": list(names)}))


def test_an_heir_begins_from_the_other_checkpoint_once(tmp_path: Path) -> None:
    heir, source = job(0, tmp_path, "epoch_0002.pt", "best.pt"), job(1, tmp_path, "epoch_0001.pt", "epoch_0002.pt")
    name = newest_linked(source, heir.directory / FOLDER / "2")
    event = Inherited(0, 1, 2, (), checkpoint=name)
    (source.directory / "checkpoints" / name).unlink()  # its own job removes it

    expected = heir.directory / FOLDER / "2" / "epoch_0002.pt"
    for _ in range(2):  # killed before it has a checkpoint, it begins there again
        assert begin(heir, event) == str(expected)
        assert expected.read_text() == "1/epoch_0002.pt"
        assert not (heir.directory / "checkpoints").exists(), "those of before are not its own any more"
    assert [*(heir.directory / FOLDER / "2" / OWN).iterdir()] == []

    write(heir, "epoch_0003.pt")
    assert begin(heir, event) is True
    assert (heir.directory / "checkpoints" / "epoch_0003.pt").exists()

    later = Inherited(
        0, 1, 4, (), checkpoint=newest_linked(job(1, tmp_path, "epoch_0004.pt"), heir.directory / FOLDER / "4")
    )
    assert begin(heir, later) == str(heir.directory / FOLDER / "4" / "epoch_0004.pt")
    assert [each.name for each in (heir.directory / FOLDER).iterdir()] == ["4"]


def test_there_is_no_heir_of_a_job_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(TrainyardError, match="#1 has no checkpoint to start from"):
        newest_linked(job(1, tmp_path), tmp_path / "0" / FOLDER / "2")
    assert not (tmp_path / "0" / FOLDER).exists()


def test_the_config_of_before_is_kept_until_each_inheritance(tmp_path: Path) -> None:
    heir, source = job(0, tmp_path, "epoch_0002.pt"), job(1, tmp_path, "epoch_0002.pt", "epoch_0004.pt")
    config = heir.directory / "config.yaml"
    for at, text in ((2, "first"), (4, "second")):
        config.write_text(text)
        event = Inherited(0, 1, at, (), checkpoint=newest_linked(source, heir.directory / FOLDER / str(at)))
        begin(heir, event)
        config.write_text("written anew by the heir")
        begin(heir, event)  # continued
        assert config_until(heir.directory, at).read_text() == text
    assert config_until(heir.directory, 2).read_text() == "first"
