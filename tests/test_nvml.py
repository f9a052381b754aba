"""What NVML says of GPUs, asked of a library built here with the signatures of nvml.h."""

from pathlib import Path
from typing import Any

import pytest
import torch
from c_libraries import compiled

from trainyard import nvml
from trainyard.hooks.system_metrics import _gpu

# The functions of NVML that are called, with the signatures of nvml.h, for a GPU that says what is known here.
DRIVER = r"""
#include <string.h>
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { unsigned long long total, free, used; } memory;
static int it;
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = index ? 0 : &it; return index == 2; }
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int size) {
    strncpy(uuid, device ? "GPU-1234" : "GPU-5678", size);
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = &it;
    return strcmp(uuid, "GPU-1234") ? 6 : 0;
}
int nvmlDeviceGetUtilizationRates(void *device, utilization *u) { u->gpu = 87; u->memory = 12; return device != &it; }
int nvmlDeviceGetMemoryInfo(void *device, memory *m) {
    m->total = 80000000000ull; m->used = 20000000000ull; m->free = m->total - m->used;
    return device != &it;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) { *milliwatts = 350500; return POWER; }
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned int *mhz) { *mhz = kind == 1 ? 1980 : 0; return POWER; }
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library that is called as NVML is."""

    def driver(power: int = 0, init: int = 0) -> None:
        library = compiled(DRIVER, tmp_path / f"nvml{power}{init}.so", f"-DPOWER={power}", f"-DINIT={init}")
        monkeypatch.setattr(nvml, "LIBRARY", str(library))

    return driver


@pytest.mark.parametrize("uuid", ["1234", "GPU-1234"])
def test_what_the_driver_says(driver: Any, uuid: str) -> None:
    driver(power=0)
    assert nvml.Gpu(uuid).read() == {
        "utilization_percentage": 87.0,
        "memory_usage_megabytes": 20000.0,
        "memory_usage_percentage": 25.0,
        "power_usage_watts": 350.5,
    }


def test_what_it_does_not_say_is_absent(driver: Any) -> None:
    driver(power=3)
    assert "power_usage_watts" not in nvml.Gpu("1234").read()
    assert nvml.Gpu("1234").clock() is None


def test_the_clock_of_the_multiprocessors(driver: Any) -> None:
    driver()
    assert nvml.Gpu("1234").clock() == 1980


def test_a_gpu_that_it_does_not_know(driver: Any) -> None:
    driver(power=0)
    with pytest.raises(OSError, match=r"NVML does not know GPU-5678 \(status 6\)"):
        nvml.Gpu("5678")


def test_the_gpus_of_the_machine(driver: Any) -> None:
    driver()
    assert nvml.gpu_uuids() == ["GPU-1234", "GPU-5678"]


def test_a_driver_that_does_not_start(driver: Any) -> None:
    driver(init=9)  # NVML_ERROR_DRIVER_NOT_LOADED
    assert nvml.gpu_uuids() == []


def test_a_machine_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(OSError, match="cannot open shared object"):
        nvml.Gpu("1234")
    assert nvml.gpu_uuids() == []
    assert _gpu(torch.device("cpu")) is None
