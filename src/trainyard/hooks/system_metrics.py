"""System metrics hook: use of CPU, memory and GPU."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from threading import TIMEOUT_MAX, Event, Thread

import torch

from trainyard.checks import number
from trainyard.nvml import Gpu
from trainyard.runner import Runner
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")

_PROC = Path("/proc")


class SystemMetrics(Hook):
    """Records the utilization of the machine in a separate thread, with the names of MLflow's system metrics.

    The metrics of the machine are `system/cpu_utilization_percentage`, `system/system_memory_usage_megabytes` and
    `…_percentage`. The metrics of this process are `system/process_cpu_utilization_percentage` (100 is one core) and
    `system/process_memory_megabytes`. The metrics of the run's GPU with number n are
    `system/gpu_n_utilization_percentage`, `…_memory_usage_megabytes`, `…_memory_usage_percentage` and
    `…_power_usage_watts`. CPU utilizations are means since the previous point. The GPU utilization is the driver's
    value for about the last second. The last point is at the end of the run. The step of a point is the run's iteration
    at that time.

    Unavailable values are omitted. Without `/proc` (outside Linux), only the CPU utilization of the process and the GPU
    metrics are recorded.

    Args:
        every: seconds between two points.
    """

    priority = "NORMAL"
    ranks = "main"
    stackable = True
    own_places = True

    def __init__(self, every: float = 10.0) -> None:
        self.every = number("every", every, above=0, unit="seconds")
        self._thread: Thread | None = None

    def before_run(self, runner: Runner) -> None:
        if not any(member.journal.writes for member in runner.members):
            return
        self._gpu = _gpu(runner.device)
        self._index = runner.device.index or 0
        self._before = _Clock()
        self._end = Event()
        self._thread = Thread(target=self._watch, args=(runner,), name="system metrics", daemon=True)
        self._thread.start()

    def after_run(self, runner: Runner) -> None:
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        self._thread = None
        self._sample(runner)

    def _watch(self, runner: Runner) -> None:
        while not self._end.wait(min(self.every, TIMEOUT_MAX)):
            self._sample(runner)

    def _sample(self, runner: Runner) -> None:
        before, self._before = self._before, _Clock()
        values = self._before.since(before) | _memory()
        if self._gpu is not None:
            values |= {f"gpu_{self._index}_{name}": value for name, value in self._gpu.read().items()}
        named = {f"system/{name}": value for name, value in values.items()}
        for member in runner.members:
            if member.journal.writes:
                member.journal.metrics(member.iter, named, epoch=member.epoch)


class _Clock:
    """A point in time, and the busy time of the CPUs and this process until then."""

    def __init__(self) -> None:
        self.wall = time.monotonic()
        self.process = time.process_time()
        self.busy, self.total = _cpu_ticks()

    def since(self, other: _Clock) -> dict[str, float]:
        values = {}
        if self.total > other.total:
            values["cpu_utilization_percentage"] = 100 * (self.busy - other.busy) / (self.total - other.total)
        if self.wall > other.wall:
            spent = (self.process - other.process) / (self.wall - other.wall)
            values["process_cpu_utilization_percentage"] = 100 * spent
        return values


def _cpu_ticks() -> tuple[int, int]:
    """Return the busy ticks and all ticks of all CPUs together since the machine started."""
    if not (_PROC / "stat").exists():
        return 0, 0
    with (_PROC / "stat").open(encoding="ascii") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]  # user time includes that of guests
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle time, and idle time while waiting for a disk


def _memory() -> dict[str, float]:
    values = {}
    if (_PROC / "meminfo").exists():
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        used = kilobytes["MemTotal"] - kilobytes["MemAvailable"]
        values["system_memory_usage_megabytes"] = used * 1024 / 1e6
        values["system_memory_usage_percentage"] = 100 * used / kilobytes["MemTotal"]
    if (_PROC / "self/statm").exists():
        pages = int((_PROC / "self/statm").read_text(encoding="ascii").split()[1])
        values["process_memory_megabytes"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return values


def _gpu(device: torch.device) -> Gpu | None:
    if device.type != "cuda":
        return None
    try:
        return Gpu(str(torch.cuda.get_device_properties(device).uuid))
    except (OSError, AttributeError) as error:
        log.info("System metrics of %s are not recorded: %s.", device, error)
        return None
