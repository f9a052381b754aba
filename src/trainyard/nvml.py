"""Bindings of NVML, NVIDIA's management library: the GPUs of the machine and their utilization.

No package is needed.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_uint, c_ulonglong, c_void_p

LIBRARY = "libnvidia-ml.so.1"
_CLOCK_SM = 1


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", c_uint), ("memory", c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


def gpu_uuids() -> list[str]:
    """Return the UUIDs of the machine's NVIDIA GPUs; empty without a driver. No CUDA context is created."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    try:
        count = c_uint(0)
        if library.nvmlDeviceGetCount_v2(byref(count)) != 0:
            return []
        uuids = []
        for index in range(count.value):
            handle, uuid = c_void_p(), ctypes.create_string_buffer(96)
            if library.nvmlDeviceGetHandleByIndex_v2(index, byref(handle)) == 0:
                library.nvmlDeviceGetUUID(handle, uuid, 96)
            uuids.append(uuid.value.decode())
        return uuids
    finally:
        library.nvmlShutdown()


class Gpu:
    """One GPU. Reading its metrics needs no CUDA and does not wait for running work.

    Args:
        uuid: `GPU-…`, as in `torch.cuda.get_device_properties`, with or without the prefix.

    Raises:
        OSError: NVML is not installed, or does not know the GPU.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml = ctypes.CDLL(LIBRARY)
        self._handle = c_void_p()
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        status = self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetHandleByUUID(name.encode(), byref(self._handle))
        if status:
            raise OSError(f"NVML does not know {name} (status {status})")

    def read(self) -> dict[str, float]:
        """Return the GPU's metrics under the suffixes of MLflow's names; values that the driver does not report are
        omitted."""
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

    def clock(self) -> int | None:
        """Return the current clock of the streaming multiprocessors in MHz; None if the driver does not report it."""
        megahertz = c_uint()
        failed = self._nvml.nvmlDeviceGetClockInfo(self._handle, _CLOCK_SM, byref(megahertz))
        return None if failed else megahertz.value
