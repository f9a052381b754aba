"""Which files are on a network disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainyard.track.network_disk import network_disk

MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local xfs rw 0 0
tmpfs /scratch tmpfs rw 0 0
lustre:/scratch /scratch lustre rw 0 0
server:/with /with\\040space nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "disk"),
    [
        ("/mlflow.db", None),
        ("/home/me/mlflow.db", "nfs4 at /home"),
        ("/homes/mlflow.db", None),
        ("/home/local/mlflow.db", None),
        ("/scratch/mlflow.db", "lustre at /scratch"),
        ("/with space/mlflow.db", "nfs at /with space"),
    ],
)
def test_the_innermost_and_latest_mount_counts(tmp_path: Path, path: str, disk: Any) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert network_disk(Path(path), tmp_path / "mounts") == disk


def test_without_a_table_nothing_is_known(tmp_path: Path) -> None:
    assert network_disk(Path("/home"), tmp_path / "mounts") is None
