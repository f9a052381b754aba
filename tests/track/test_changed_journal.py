"""A journal that is cut, emptied, removed or replaced after it was shipped: what it holds is in MLflow in the end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainyard.track import Journal
from trainyard.track.shipped import Shipped, summary
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.run_shipper import RunShipper
from trainyard.track.shipper.store import Stores


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n", 0, len(content) // 2) + 1])


def replace(path: Path) -> None:
    """Put a journal of the same length in its place, that has another value in its last line."""
    path.write_bytes(path.read_bytes().replace(b'"FINISHED"', b'"KILLED"  '))


CHANGES = [cut, lambda path: path.write_bytes(b""), Path.unlink, replace]
IDS = ["cut", "emptied", "removed", "replaced"]


def go_on(work_dir: Path, steps: range) -> None:
    """Write what a resumed run would."""
    with Journal(work_dir) as journal:
        journal.status("RUNNING")
        for step in steps:
            journal.metrics(step, {"train/loss": 1 / step, "again": float(step)})
        journal.status("FINISHED")


@pytest.mark.parametrize("change", CHANGES, ids=IDS)
@pytest.mark.parametrize("longer", [False, True], ids=["shorter than before", "longer than before"])
def test_what_comes_after_is_shipped(
    uri: str,
    new_run: Callable[..., Path],
    fill: Callable[..., None],
    journaled: Callable[..., dict[tuple[str, int], list[str]]],
    stored: Callable[..., dict[tuple[str, int], list[str]]],
    change: Callable[[Path], object],
    longer: bool,
) -> None:
    work_dir = new_run(uri)
    fill(work_dir, steps=20)
    stores = Stores()
    assert ship_now(work_dir, stores).complete
    change(work_dir / "metrics.jsonl")
    go_on(work_dir, range(21, 70 if longer else 24))
    assert not summary(work_dir).complete
    shipment = ship_now(work_dir, stores)
    assert shipment.complete
    assert [note for note in shipment.notes if "truncated or replaced" in note]
    known, expected = stored(uri, str(shipment.run_id)), journaled(work_dir)
    assert {place: known.get(place) for place in expected} == expected
    assert ship_now(work_dir, stores).shipped == shipment.shipped  # and told once
    assert len(summary(work_dir).notes) == 1


@pytest.mark.parametrize("change", CHANGES, ids=IDS)
def test_nothing_is_said_to_be_shipped_that_is_not_there(
    uri: str, new_run: Callable[..., Path], fill: Callable[..., None], change: Callable[[Path], object]
) -> None:
    work_dir = new_run(uri)
    fill(work_dir, steps=20)
    ship_now(work_dir, Stores())
    change(work_dir / "metrics.jsonl")
    assert summary(work_dir).shipped == 0
    assert Shipped.load(work_dir, uri).offset == 0


def test_a_journal_that_changes_under_its_shipper(
    uri: str,
    new_run: Callable[..., Path],
    fill: Callable[..., None],
    stored: Callable[..., dict[tuple[str, int], list[str]]],
) -> None:
    work_dir = new_run(uri)
    fill(work_dir, steps=20, status=None)
    shipper = RunShipper(work_dir, Stores())
    shipper.step()
    (work_dir / "metrics.jsonl").unlink()
    go_on(work_dir, range(21, 80))
    shipper.writer_left()
    while not shipper.done:
        shipper.step()
    shipper.release()
    run_id = Shipped.load(work_dir, uri).run_id
    assert {step for name, step in stored(uri, str(run_id)) if name == "again"} == set(range(21, 80))
