"""Freed memory of the host, kept for the next step."""

from __future__ import annotations

import ctypes
import os
import sys

# Numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT = 2**31 - 1
_MAPPED = 1 << 30
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let the process keep memory that it frees, where glibc does the allocating (Linux).

    By itself glibc gives the top of its heap back as soon as 128 KiB of it are free (or somewhat more, which it works
    out as it goes), and takes large blocks from the system one by one. A training frees its activations and gradients
    at every step and wants them again at the next: thousands of page faults a step, a sixth of that of a small ResNet.
    Blocks of 1 GiB and more, and what is free beyond 2 GiB, are given back as before.

    Returns:
        False where there is no glibc, or where the user has said by `MALLOC_…_` or `GLIBC_TUNABLES` how it is to work.
    """
    told = any(name in os.environ for name in _VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if told or mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
