"""What a run ran on: the code's state in git, package versions, the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PACKAGES = ("torch", "hydra-core", "omegaconf", "mlflow", "numpy", "trainyard")
MAX_DIFF = 10_000_000  # bytes; a larger one is data that should not be in a diff


def collect(cwd: str | Path, timeout: float = 10.0) -> dict[str, str]:
    """The facts, by name: `git.commit`, `git.branch`, `git.dirty`, `git.diff`, `version.torch`, `host.cpu`, …

    What cannot be found out is left out; nothing raises. `git.diff` holds the text of `git diff HEAD`, for the caller
    to write into a file of its own. CUDA devices are not named here: that would take torch.

    Args:
        cwd: a folder in the git repository of interest.
        timeout: seconds to wait for git at most.
    """
    return begin(cwd, timeout)()


def begin(cwd: str | Path, timeout: float = 10.0) -> Callable[[], dict[str, str]]:
    """Starts git in the background, and returns the function that waits for it and gives what `collect` gives."""
    code: dict[str, str] = {}
    thread = threading.Thread(target=lambda: code.update(_git(Path(cwd), timeout)), daemon=True)
    thread.start()

    def result() -> dict[str, str]:
        rest = _versions() | _machine()
        thread.join()
        return code | rest

    return result


def _git(cwd: Path, timeout: float) -> dict[str, str]:
    facts: dict[str, str] = {}
    with suppress(OSError, subprocess.SubprocessError):
        # Both at once; neither takes the index lock, so a commit made meanwhile is not in the way.
        status, diff = (
            subprocess.Popen(
                ["git", "--no-optional-locks", *command],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
            for command in (["status", "--porcelain=v2", "--branch"], ["diff", "HEAD", "--no-color", "--no-ext-diff"])
        )
        changes = _output(diff, timeout)
        for line in (_output(status, timeout) or "").splitlines():
            match line.split(" ", 2):
                case ["#", "branch.oid", commit] if commit != "(initial)":
                    facts["git.commit"] = commit
                case ["#", "branch.head", branch] if branch != "(detached)":
                    facts["git.branch"] = branch
                case ["#", *_]:
                    pass
                case _:
                    facts["git.dirty"] = "true"
        if facts:
            facts.setdefault("git.dirty", "false")
        if changes and len(changes) <= MAX_DIFF:
            facts["git.diff"] = changes
    return facts


def _output(process: subprocess.Popen[str], timeout: float) -> str | None:
    try:
        text, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    return text if process.returncode == 0 else None


def _versions() -> dict[str, str]:
    facts = {"version.python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            facts[f"version.{package}"] = importlib.metadata.version(package)
    return facts


def _machine() -> dict[str, str]:
    facts = {"host.name": platform.node(), "host.platform": f"{platform.system()} {platform.release()}"}
    cpu = _cpu_model()
    if cpu:
        facts["host.cpu"] = cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["host.cpu_count"] = str(cores)
    with suppress(OSError, ValueError, AttributeError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["host.memory"] = f"{memory / 2**30:.1f} GiB"
    return facts


def _cpu_model() -> str:
    if sys.platform == "linux":
        with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model", "cpu model"):
                    return value.strip()
    return platform.machine()
