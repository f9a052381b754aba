"""Processes that the system kills for want of memory."""

from __future__ import annotations

from pathlib import Path

VMSTAT = Path("/proc/vmstat")


def kills() -> int:
    """Return how many processes the system has killed because of memory since it started; 0 if this is unknown.

    The count is that of the whole machine, control groups included (`oom_kill` in proc_vmstat(5)).
    """
    try:
        for line in VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except (OSError, ValueError):
        pass
    return 0


def killed_for_memory(peak: int) -> str:
    """Return what happened to a process, in words.

    Args:
        peak: the memory that it had at most, in bytes.
    """
    return f"killed by the system: out of memory (it used {peak / 2**30:.1f} GiB)"
