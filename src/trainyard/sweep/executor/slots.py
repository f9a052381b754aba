"""Slots: the parts of this machine, and the environment that limits a task to its part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainyard.checks import integer
from trainyard.errors import ConfigError, counted
from trainyard.nvml import gpu_uuids


@dataclass(frozen=True)
class Slot:
    """Part of the machine, on which one task runs at a time.

    Attributes:
        index: its number; no two slots of an executor share one.
        device: `cpu`, or `cuda:0`, `cuda:1`, … as this process counts its devices. The task sees its own as `cuda:0`.
        cpus: the cores to which the task is bound; None for all.
        threads: threads that torch, OpenMP and MKL use in the task.
    """

    index: int
    device: str = "cpu"
    cpus: tuple[int, ...] | None = None
    threads: int = 1


def capacity(slots: Sequence[Slot]) -> int:
    """Return the number of these slots that one task can use: all on the CPU, one on each CUDA device."""
    return len({slot.index if slot.device == "cpu" else slot.device for slot in slots})


def find_slots(
    jobs_per_gpu: int | Literal["auto"] = "auto",
    threads_per_job: int | Literal["auto"] = "auto",
    max_jobs: int | None = None,
) -> list[Slot]:
    """Return this machine's slots: each CUDA device `jobs_per_gpu` times, or, without CUDA, cores ÷ `threads_per_job`.

    NVML counts the devices without creating a CUDA context; `CUDA_VISIBLE_DEVICES` is respected. Only cores that this
    process may use are counted. `auto` depends only on the machine, so that a task has the same number of threads, and
    computes the same bits, for any number of tasks.

    Args:
        jobs_per_gpu: the number of tasks that share a device; `auto` is 1.
        threads_per_job: the number of threads per task. Without CUDA, `auto` is 1, because many tasks with one thread
            are faster than few tasks with several threads. With CUDA, `auto` is an equal share of the cores.
        max_jobs: the maximum number of tasks at a time; None: no limit. The slots are distributed over all devices.

    Returns:
        At least one slot. Slots without CUDA are bound to separate cores.

    Raises:
        ConfigError: a number is out of range.
    """
    cores = sorted(os.sched_getaffinity(0))
    gpus = visible_devices(gpu_uuids(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if jobs_per_gpu != "auto":
        integer("jobs_per_gpu", jobs_per_gpu, at_least=1, other="auto")
    if threads_per_job != "auto":
        other = f"auto (this process may use {counted(len(cores), 'core')})"
        integer("threads_per_job", threads_per_job, at_least=1, at_most=len(cores), other=other)
    if max_jobs is not None:
        integer("max_jobs", max_jobs, at_least=1, other="null")

    if gpus:
        # Device by device, then again, so that the first slots are on different devices.
        devices = [f"cuda:{index}" for index in range(len(gpus))] * (1 if jobs_per_gpu == "auto" else jobs_per_gpu)
        threads = max(1, len(cores) // len(devices)) if threads_per_job == "auto" else threads_per_job
        # Not bound to cores: the host's part of a training on CUDA comes in bursts.
        slots = [Slot(index, device, None, threads) for index, device in enumerate(devices)]
    else:
        threads = 1 if threads_per_job == "auto" else threads_per_job
        shares = [tuple(cores[first : first + threads]) for first in range(0, len(cores) - threads + 1, threads)]
        slots = [Slot(index, "cpu", share, threads) for index, share in enumerate(shares)]
    return slots[:max_jobs]


def visible_devices(gpus: Sequence[str], setting: str | None) -> list[str]:
    """Return the devices that CUDA shows under a setting of `CUDA_VISIBLE_DEVICES`, as names for that variable.

    The rules are CUDA's ("CUDA Environment Variables", CUDA C++ Programming Guide): numbers, UUIDs or prefixes of
    UUIDs; the first invalid name ends the list; with a name given twice there are no devices.

    Args:
        gpus: the UUIDs of the GPUs that the machine has.
        setting: the variable's value; None if it is not set.
    """
    if setting is None:
        return [str(index) for index in range(len(gpus))]
    names: list[str] = []
    for name in (part.strip() for part in setting.split(",")):
        if name.isdecimal():
            known = int(name) < len(gpus)
        elif name.startswith("GPU-"):
            known = any(uuid.startswith(name) for uuid in gpus)
        else:
            known = name.startswith("MIG-") and bool(gpus)
        if not known:
            break
        names.append(name)
    return names if len(set(names)) == len(names) else []


def environment(slots: Sequence[Slot], base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a task on these slots, based on those of this process.

    Raises:
        ConfigError: the device of a slot is not visible to this process, or does not exist.
    """
    # A task on the CPU does not use the GPUs.
    devices = ",".join(_device(slot, base) for slot in slots if slot.device != "cpu")
    threads = str(slots[0].threads)  # of each process, if the task trains on several devices
    return {**base, "CUDA_VISIBLE_DEVICES": devices, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def _device(slot: Slot, base: Mapping[str, str]) -> str:
    kind, _, number = slot.device.partition(":")
    if kind != "cuda" or not number.isdecimal():
        raise ConfigError("slots", slot.device, "devices named cpu or cuda:<number>")
    if "CUDA_VISIBLE_DEVICES" not in base:
        return number
    names = [name.strip() for name in base["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    if int(number) >= len(names):
        accepted = f"a device that is visible: CUDA_VISIBLE_DEVICES has {counted(len(names), 'device')}"
        raise ConfigError("slots", slot.device, accepted)
    return names[int(number)]
