"""Process settings: threads, determinism, memory, and the device of a training."""

from __future__ import annotations

import logging
import multiprocessing
import os

import torch

from trainyard._fast_paths import use_fast_paths
from trainyard.checks import boolean, choice, integer
from trainyard.errors import ConfigError, counted
from trainyard.host_memory import keep_freed_memory

log = logging.getLogger(__name__)

MOST_THREADS = 4096
"""Maximum number of threads of a process; torch creates all of them immediately."""


class Env:
    """Process-wide settings, applied before the model is built. None leaves a setting unchanged.

    `precision=tf32` sets TF32, and the strategy sets the backend of several processes.

    Args:
        threads: threads for CPU kernels; None: torch's default (or `OMP_NUM_THREADS`).
        interop_threads: threads on which torch runs independent operations, such as those of `torch.jit.fork`. A
            process can set this value only once, before the first use. Later, the value stays unchanged, and a message
            is logged.
        omp_num_threads: the environment variable `OMP_NUM_THREADS`, for processes that this process starts: data
            workers (under `spawn` or `forkserver`) and the libraries that they call. This process has already read the
            variable and uses `threads`.
        mkl_num_threads: the same for `MKL_NUM_THREADS`.
        start_method: the start method of the workers of a DataLoader: `fork`, `forkserver` or `spawn`. None: Python's
            default.
        deterministic: use only kernels that give the same bits on every run; slower on CUDA. An operation without such
            a kernel raises an error that names it.
        cudnn_benchmark: let cuDNN benchmark its algorithms for each input shape; ignored if `deterministic` is True.
        keep_memory: keep freed host memory in the process for the next step, instead of returning it to the system,
            which causes page faults. The setting remains active until the process ends.
        fast_paths: use private functions of torch where they are faster, and private functions of Hydra to compose the
            config of a run only once, and the configs of a sweep's jobs faster. False: use their public replacements,
            which are slower; a few parts have none. The results are the same. For a stack, and for a step that is
            captured into a CUDA graph, they are equal up to rounding.

    Raises:
        ConfigError: a value is invalid.
    """

    def __init__(
        self,
        threads: int | None = None,
        interop_threads: int | None = None,
        omp_num_threads: int | None = None,
        mkl_num_threads: int | None = None,
        start_method: str | None = None,
        deterministic: bool = False,
        cudnn_benchmark: bool = True,
        keep_memory: bool = True,
        fast_paths: bool = True,
    ) -> None:
        self.threads = _threads("threads", threads)
        self.interop_threads = _threads("interop_threads", interop_threads)
        self.variables = {
            "OMP_NUM_THREADS": _threads("omp_num_threads", omp_num_threads),
            "MKL_NUM_THREADS": _threads("mkl_num_threads", mkl_num_threads),
        }
        if start_method is not None:
            methods = multiprocessing.get_all_start_methods()
            choice("start_method", start_method, methods, other="null for Python's own choice")
        self.start_method = start_method
        self.deterministic = boolean("deterministic", deterministic)
        self.cudnn_benchmark = boolean("cudnn_benchmark", cudnn_benchmark)
        self.keep_memory = boolean("keep_memory", keep_memory)
        self.fast_paths = boolean("fast_paths", fast_paths)

    def apply(self) -> None:
        """Apply the settings to this process."""
        use_fast_paths(self.fast_paths)
        if self.keep_memory:
            keep_freed_memory()
        for name, value in self.variables.items():
            if value is not None:
                os.environ[name] = str(value)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.interop_threads is not None:
            self._set_interop_threads(self.interop_threads)
        if self.start_method is not None:
            multiprocessing.set_start_method(self.start_method, force=True)
            if self.start_method == "forkserver":  # otherwise each worker imports it
                multiprocessing.set_forkserver_preload(["torch"])
        torch.backends.cudnn.benchmark = self.cudnn_benchmark and not self.deterministic
        if self.deterministic:
            # cuBLAS reads it at first use, so CUDA must not have been touched before.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic)

    @staticmethod
    def _set_interop_threads(count: int) -> None:
        if torch.get_num_interop_threads() == count:
            return
        try:
            torch.set_num_interop_threads(count)
        except RuntimeError:  # the threads are already running
            log.warning(
                "env.interop_threads=%d has no effect: this process already uses %s, and torch can set "
                "this number only once in a process.",
                count,
                counted(torch.get_num_interop_threads(), "interop thread"),
            )


def _threads(key: str, value: int | None) -> int | None:
    return (
        None
        if value is None
        else integer(key, value, at_least=1, at_most=MOST_THREADS, other="null to leave the setting unchanged")
    )


def as_env(given: object) -> Env:
    """Return the settings of a process unchanged; None are the default settings.

    Raises:
        ConfigError: the value is not an `Env`.
    """
    if given is None:
        return Env()
    if not isinstance(given, Env):
        raise ConfigError("env", given, "a trainyard.runner.Env, or its config, or null")
    return given


def find_device(name: str) -> torch.device:
    """Return the device for `auto` (CUDA if available, else the CPU), `cpu`, `cuda` or `cuda:1`, or for another device
    of torch on which a number can be stored, such as `mps` or `xpu`.

    Raises:
        ConfigError: torch does not know the name, or this machine does not have the device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(str(name))  # a number would be one of CUDA's
    except RuntimeError:
        available = _available()
        raise ConfigError("device", name, f"one of {', '.join(available)}", options=available) from None
    if device.type == "cuda" and (count == 0 or (device.index or 0) >= count):
        hint = "" if count else f"This torch ({torch.__version__}) finds no CUDA device."
        raise ConfigError("device", name, f"one of {', '.join(_available())}", hint=hint)
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, NotImplementedError, AssertionError):  # no such device, or one without storage (meta)
            hint = f"This torch ({torch.__version__}) has no such device to train on."
            raise ConfigError("device", name, f"one of {', '.join(_available())}", hint=hint) from None
    return device


def _available() -> list[str]:
    """Return the names of the devices that this machine has, and `auto`."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["auto", "cpu"]
    count, kind = torch.accelerator.device_count(), accelerator.type
    return ["auto", "cpu", kind, *(f"{kind}:{index}" for index in range(count))]


def describe(device: torch.device) -> str:
    """Describe a device for the log: `cuda (NVIDIA H100)`, `cpu (2 threads)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' * (threads > 1)})"
