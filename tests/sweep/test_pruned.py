"""What a pruned job leaves on the disk."""

from pathlib import Path

from trainyard.sweep.pruned import remove_regular


def test_regular_checkpoints_are_removed_whether_files_or_folders(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "epoch_0001.pt").mkdir(parents=True)  # with strategy=fsdp
    (folder / "epoch_0001.pt" / "__0_0.distcp").touch()
    for name in ("iter_00000010.pt", "last.json", "best.pt", "best_accuracy.pt"):
        (folder / name).touch()
    remove_regular(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "best_accuracy.pt"]
    remove_regular(tmp_path / "absent")
