"""Facts about a run: the state of the code in git, package versions, the machine, and a readable text with all of
them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from trainyard.redaction import redact
from trainyard.track.variables import GIT_FACTS, RAY_NODE, VARIABLES

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "mlflow", "numpy", "trainyard")
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
DRIVER = Path("/proc/driver/nvidia")
FILES = {"git.diff": "git.diff", "environment": "environment.txt"}
"""Facts that are texts, and the files in a run's directory to which they are written."""
MAX_DIFF = 10_000_000  # bytes; a larger one is data that should not be in a diff


def collect(cwd: str | Path, timeout: float = 10.0) -> dict[str, str]:
    """Return the facts, by name: `git.commit`, `git.branch`, `git.dirty`, `git.diff`, `version.torch` and more.

    Facts that cannot be determined are omitted; no errors are raised. Two facts are texts, which the caller writes into
    separate files: `git.diff` is the output of `git diff HEAD`, and `environment` lists all facts in readable form,
    with compilers, the build of torch, and environment variables. torch is queried only if it has been imported, and
    CUDA is not initialized: the driver names the GPUs.

    Args:
        cwd: a folder in the git repository of interest.
        timeout: the maximum number of seconds to wait for git.
    """
    return begin(cwd, timeout)()


def begin(cwd: str | Path, timeout: float = 10.0) -> Callable[[], dict[str, str]]:
    """Start git in the background, and return a function that waits for git and returns the facts of `collect`."""
    code: dict[str, str] = {}
    nvcc: list[str] = []

    def ask() -> None:
        code.update(git_facts(Path(cwd), timeout))
        nvcc.append(_nvcc(timeout))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()

    def result() -> dict[str, str]:
        rest = versions() | _machine() | _cuda()
        thread.join()
        return code | rest | {"environment": _text(code | rest, *nvcc)}

    return result


def git_facts(cwd: Path, timeout: float = 10.0) -> dict[str, str]:
    """Return the state of the code: the report of git in a folder, or on the machine from which the code was sent."""
    if GIT_FACTS in os.environ:
        with suppress(OSError, ValueError):
            sent: dict[str, str] = json.loads(Path(os.environ[GIT_FACTS]).read_bytes())
            return sent
    facts: dict[str, str] = {}
    with suppress(OSError, subprocess.SubprocessError):
        # Both at once; neither takes the index lock, so neither blocks a concurrent commit.
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


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of packages."""
    facts = {"version.python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            facts[f"version.{package}"] = importlib.metadata.version(package)
    for package in OPENCV:
        with suppress(importlib.metadata.PackageNotFoundError):
            facts["version.opencv"] = importlib.metadata.version(package)
            break
    return facts


def _cuda() -> dict[str, str]:
    """Return the GPUs and the driver, and the CUDA versions that torch was built for."""
    facts = {}
    names = []
    for file in sorted(DRIVER.glob("gpus/*/information")):
        with suppress(OSError):
            names += [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line[:6] == "Model:"]
    if names:
        facts["cuda.devices"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    with suppress(OSError):
        words = (DRIVER / "version").read_text().partition("Module")[2].split()
        facts["cuda.driver"] = next(word for word in words if word[0].isdigit())
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda:
        facts["cuda.version"] = str(torch.version.cuda)
        with suppress(RuntimeError):  # a cuDNN that does not match this torch
            facts["cuda.cudnn"] = str(torch.backends.cudnn.version())
    return facts


def _nvcc(timeout: float) -> str:
    """Return the version of the CUDA compiler; empty if there is no compiler, or no GPU."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    program = (shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")) if DRIVER.exists() else None
    if program is not None:
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=timeout, check=True)
            return done.stdout.partition("release ")[2].partition("\n")[0]
    return ""


def _text(facts: dict[str, str], nvcc: str = "") -> str:
    lines = {"sys.platform": sys.platform, "platform": platform.platform(), "python": " ".join(sys.version.split())}
    lines |= {name: value for name, value in facts.items() if name != "git.diff"}
    if nvcc:
        lines["nvcc"] = nvcc
    lines |= {name: redact(os.environ[name]) for name in sorted(VARIABLES & os.environ.keys())}
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    torch = sys.modules.get("torch")
    if torch is not None:
        text += f"\n{torch.__config__.show()}\n{torch.__config__.parallel_info()}"
    return text


def _machine() -> dict[str, str]:
    facts = {"host.name": platform.node(), "host.platform": f"{platform.system()} {platform.release()}"}
    cpu = cpu_model()
    if cpu:
        facts["host.cpu"] = cpu
    facts["host.cpu_count"] = str(os.cpu_count())  # of the machine: a job of a sweep uses only the CPUs of its slot
    with suppress(OSError, ValueError, AttributeError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["host.memory"] = f"{memory / 2**30:.1f} GiB"
    return facts | _slurm(os.environ) | _ray(os.environ)


def _slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the Slurm job of this process in the form of `squeue` (`12`, `12_3`), and the node of the job."""
    if "SLURM_JOB_ID" not in environ:
        return {}
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    node = environ.get("SLURMD_NODENAME")
    return {"slurm.job": job} | ({"slurm.node": node} if node else {})


def _ray(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the name in Ray of the node of a Ray cluster on which the agent of this process runs."""
    return {"ray.node": environ[RAY_NODE]} if RAY_NODE in environ else {}


def cpu_model() -> str:
    """Return the kind of CPU: its model, if the system names it."""
    if sys.platform == "linux":
        with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model", "cpu model"):
                    return value.strip()
    return platform.machine()
