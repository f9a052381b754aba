import os
import subprocess
import sys
from typing import Any

import pytest

from trainyard.errors import ConfigError
from trainyard.sweep.executor import find_slots, slots
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.settings import SweepSettings

GPUS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that the machine has these cores and GPUs."""

    def pretend(cores: Any, gpus: Any = (), visible: Any = None) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cores))
        monkeypatch.setattr(slots, "gpu_uuids", lambda: list(gpus))
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return pretend


def test_without_a_gpu_each_core_is_a_slot(machine: Any) -> None:
    machine([1, 3, 5])
    assert find_slots() == [Slot(0, "cpu", (1,), 1), Slot(1, "cpu", (3,), 1), Slot(2, "cpu", (5,), 1)]


def test_threads_per_job_share_out_the_cores(machine: Any) -> None:
    machine(range(5))
    assert find_slots(threads_per_job=2) == [Slot(0, "cpu", (0, 1), 2), Slot(1, "cpu", (2, 3), 2)]
    assert find_slots(threads_per_job=5) == [Slot(0, "cpu", (0, 1, 2, 3, 4), 5)]


def test_max_jobs_limits_a_job_only_where_there_are_more_devices(machine: Any) -> None:
    machine(range(16), GPUS[:2])
    for max_jobs, limits in ((1, True), (2, False), (3, False), (None, False)):
        settings = SweepSettings(jobs_per_gpu=2, max_jobs=max_jobs)
        assert settings.limits_a_job(settings.slots(False), False) == limits


def test_each_device_is_a_slot_and_jobs_per_gpu_multiplies_them(machine: Any) -> None:
    machine(range(16), GPUS[:2])
    assert find_slots() == [Slot(0, "cuda:0", None, 8), Slot(1, "cuda:1", None, 8)]
    doubled = find_slots(jobs_per_gpu=2)
    assert [slot.device for slot in doubled] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [slot.threads for slot in doubled] == [4] * 4
    assert [slot.index for slot in doubled] == [0, 1, 2, 3]
    assert {slot.threads for slot in find_slots(jobs_per_gpu=20)} == {1}


def test_max_jobs_changes_how_many_slots_there_are_and_nothing_else(machine: Any) -> None:
    machine(range(16), GPUS[:2])
    assert find_slots(jobs_per_gpu=2, max_jobs=2) == find_slots(jobs_per_gpu=2)[:2]
    machine(range(4))
    assert find_slots(max_jobs=3) == find_slots()[:3]


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("-1", []),
        ("2,0", ["2", "0"]),
        (" 1 , 2 ", ["1", "2"]),
        ("0,7,1", ["0"]),
        ("0,x,1", ["0"]),
        ("1,1", []),
        ("GPU-cccc-3,GPU-aaaa", ["GPU-cccc-3", "GPU-aaaa"]),
        ("GPU-dddd,0", []),
        ("MIG-1,MIG-2", ["MIG-1", "MIG-2"]),
    ],
)
def test_visible_devices_follow_the_rules_of_cuda(setting: str | None, names: Any) -> None:
    assert slots.visible_devices(GPUS, setting) == names


def test_hidden_gpus_are_no_slots(machine: Any) -> None:
    machine([0, 1], GPUS, visible="2,GPU-aaaa-1")
    assert [slot.device for slot in find_slots()] == ["cuda:0", "cuda:1"]
    machine([0, 1], GPUS, visible="")
    assert [slot.device for slot in find_slots()] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda:1", None, "1"),
        ("cuda:0", "3,GPU-aaaa", "3"),
        ("cuda:1", "3, GPU-aaaa", "GPU-aaaa"),
        ("cuda:0", "MIG-1", "MIG-1"),
        ("cpu", None, ""),
        ("cpu", "0", ""),
    ],
)
def test_a_task_sees_its_own_device_only(device: str, visible: str | None, expected: str) -> None:
    base = {"PATH": "/bin"} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert slots.environment([Slot(0, device, threads=3)], base) == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": expected,
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
    }


@pytest.mark.parametrize(("device", "visible"), [("cuda:2", "0,1"), ("cuda:0", ""), ("cuda", "0"), ("tpu:0", "0")])
def test_a_device_that_is_not_there_is_a_config_error(device: str, visible: str) -> None:
    with pytest.raises(ConfigError, match="slots"):
        slots.environment([Slot(0, device)], {"CUDA_VISIBLE_DEVICES": visible})


@pytest.mark.parametrize("key", ["jobs_per_gpu", "threads_per_job", "max_jobs"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
def test_wrong_numbers_are_config_errors(key: str, value: bool | float | str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        find_slots(**{key: value})
    assert caught.value.given == value


def test_more_threads_than_cores_is_a_config_error(machine: Any) -> None:
    machine([0, 1])
    with pytest.raises(ConfigError, match="from 1 to 2"):
        find_slots(threads_per_job=3)


def test_slots_are_found_without_torch() -> None:
    code = (
        "import sys; from trainyard.sweep.executor import find_slots; find_slots(); assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


@pytest.mark.gpu
def test_the_gpus_are_those_that_torch_counts() -> None:
    import torch

    assert len(slots.gpu_uuids()) == torch.cuda.device_count()  # type: ignore[attr-defined]
    assert {slot.device for slot in find_slots()} == {f"cuda:{index}" for index in range(torch.cuda.device_count())}
