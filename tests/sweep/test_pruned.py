"""What a pruned job leaves on the disk, and requests that a dead head has left."""

from pathlib import Path

from trainyard.sweep.events import Ended, Paused
from trainyard.sweep.pruned import fulfilled, remove_regular


def test_regular_checkpoints_are_removed_whether_files_or_folders(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "epoch_0001.pt").mkdir(parents=True)  # with strategy=fsdp
    (folder / "epoch_0001.pt" / "__0_0.distcp").touch()
    for name in ("iter_00000010.pt", "last.json", "best.pt", "best_accuracy.pt"):
        (folder / name).touch()
    remove_regular(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "best_accuracy.pt"]
    remove_regular(tmp_path / "absent")


def test_requests_to_jobs_of_a_dead_head_are_fulfilled() -> None:
    found = fulfilled({1: "pause", 2: "stop", 3: "prune"}, {3: (4, 0.5)}, "by hand")
    assert found == [
        Paused(1, by_hand=True),
        Ended(2, "stopped", error="by hand"),
        Ended(3, "pruned", objective=0.5, error="pruned at rung 4"),
    ]
