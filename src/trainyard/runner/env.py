"""The process's settings that a training runs under."""

from __future__ import annotations

import os

import torch

from trainyard.errors import ConfigError


class Env:
    """Process-wide settings, applied before the model is built.

    Args:
        threads: threads for CPU kernels; None leaves torch's choice (or `OMP_NUM_THREADS`).
        deterministic: only kernels that give the same bits on every run; slower on CUDA. An operation that has none
            raises an error that names it.
        cudnn_benchmark: let cuDNN time its algorithms for the shapes it meets; ignored when deterministic.
    """

    def __init__(self, threads: int | None = None, deterministic: bool = False, cudnn_benchmark: bool = True) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ConfigError("threads", threads, "a whole number of at least 1, or null for torch's own choice")
        self.threads = threads
        self.deterministic = deterministic
        self.cudnn_benchmark = cudnn_benchmark

    def apply(self) -> None:
        """Set them for this process."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.backends.cudnn.benchmark = self.cudnn_benchmark and not self.deterministic
        if self.deterministic:
            # cuBLAS reads it when it is first used: CUDA must not have been touched before.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic)


def find_device(name: str) -> torch.device:
    """The device for `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, …

    Raises:
        ConfigError: a name that torch does not know, or a device that this machine lacks.
    """
    count = torch.cuda.device_count()
    available = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("device", name, f"one of {', '.join(available)}", options=available) from None
    if device.type == "cuda" and (count == 0 or (device.index or 0) >= count):
        hint = "" if count else f"This torch ({torch.__version__}) sees no CUDA device."
        raise ConfigError("device", name, f"one of {', '.join(available)}", hint=hint)
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, NotImplementedError, AssertionError):  # no such device, or one that holds no numbers
            hint = f"This torch ({torch.__version__}) has no such device to train on."
            raise ConfigError("device", name, f"one of {', '.join(available)}", hint=hint) from None
    return device


def describe(device: torch.device) -> str:
    """A device in words: `cuda (NVIDIA H100)`, `cpu (2 threads)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' * (threads > 1)})"
