"""What NVIDIA's driver says of a GPU, through its library NVML; no package is needed for it."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_uint, c_ulonglong, c_void_p

LIBRARY = "libnvidia-ml.so.1"


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", c_uint), ("memory", c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Gpu:
    """One GPU. Reading it needs no CUDA and waits for nothing that runs there.

    Args:
        uuid: `GPU-…`, as `torch.cuda.get_device_properties` has it, with or without the prefix.

    Raises:
        OSError: there is no NVML here, or it does not know the GPU.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml = ctypes.CDLL(LIBRARY)
        self._handle = c_void_p()
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        status = self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetHandleByUUID(name.encode(), byref(self._handle))
        if status:
            raise OSError(f"NVML does not know {name} (status {status})")

    def read(self) -> dict[str, float]:
        """Its numbers, under the ends of MLflow's names; what the driver does not tell is absent."""
        found: dict[str, float] = {}
        utilization, memory, milliwatts = _Utilization(), _Memory(), c_uint()
        if not self._nvml.nvmlDeviceGetUtilizationRates(self._handle, byref(utilization)):
            found["utilization_percentage"] = float(utilization.gpu)
        if not self._nvml.nvmlDeviceGetMemoryInfo(self._handle, byref(memory)):
            found["memory_usage_megabytes"] = memory.used / 1e6
            found["memory_usage_percentage"] = 100 * memory.used / memory.total
        if not self._nvml.nvmlDeviceGetPowerUsage(self._handle, byref(milliwatts)):
            found["power_usage_watts"] = milliwatts.value / 1000
        return found
