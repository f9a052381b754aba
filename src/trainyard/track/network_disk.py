"""Network disks: file systems to which several machines write, and on which the locks of SQLite do not work."""

from __future__ import annotations

from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
TYPES = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fhgfs",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs3",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb3",
        "smbfs",
        "wekafs",
    )
)


def network_disk(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the network disk on which a file is, or would be: `nfs4 at /home`; None if there is none, or if it is
    unknown.

    Args:
        path: the absolute path of the file.
        mounts: the table of mounts, in the form of `fstab(5)`.
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    path = path.resolve()
    found: tuple[int, str, str] | None = None
    for line in lines:
        _, place, kind = line.split(" ")[:3]
        place = place.replace("\\040", " ")
        # The later of two mounts at one place hides the earlier.
        if path.is_relative_to(place) and (found is None or len(place) >= found[0]):
            found = len(place), kind, place
    return f"{found[1]} at {found[2]}" if found is not None and found[1] in TYPES else None
