"""Processes that the system kills because it is out of memory."""

from __future__ import annotations

from pathlib import Path

VMSTAT = Path("/proc/vmstat")


def kills() -> int:
    """Return the number of processes that the system has killed because of memory since its start; 0 if unknown.

    The count is that of the entire machine, control groups included (`oom_kill` in proc_vmstat(5)).
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
    """Describe how a process ended.

    Args:
        peak: its peak memory in bytes.
    """
    return f"killed by the system: out of memory (it used {peak / 2**30:.1f} GiB)"
