import threading
from itertools import pairwise
from mmap import mmap
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numpy as np
import pytest
import torch
from waiting import LIMIT

from trainyard.errors import ConfigError
from trainyard.hooks import Hook, SystemMetrics
from trainyard.hooks.system_metrics import _Clock, _memory
from trainyard.track import read

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


def samples(folder: Any) -> Any:
    return [
        record
        for record, _ in read(folder / "metrics.jsonl")
        if record["kind"] == "metrics" and any(name.startswith("system/") for name in record["values"])
    ]


class Waits(Hook):
    """An iteration takes until there are some points more."""

    def __init__(self, sampled: Any) -> None:
        self.sampled = sampled

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter in (6, 12):
            for _ in range(2):
                assert self.sampled.acquire(timeout=LIMIT)


@linux
def test_the_journal_has_mlflows_names(make: Any, tmp_path: Path) -> None:
    class Counted(SystemMetrics):
        def _sample(self, runner: Any) -> None:
            super()._sample(runner)
            sampled.release()

    sampled = threading.Semaphore(0)
    make({"system": Counted(every=0.05), "waits": Waits(sampled)}, work_dir=tmp_path).train()
    found = samples(tmp_path)
    assert len(found) >= 5
    cpu = "system/cpu_utilization_percentage"  # absent from a point within a tick (10 ms) of the one before
    assert any(cpu in record["values"] for record in found)
    assert set(found[-1]["values"]) | {cpu} == {
        cpu,
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
        "system/process_cpu_utilization_percentage",
        "system/process_memory_megabytes",
    }
    for record in found:
        assert 0 < record["values"]["system/system_memory_usage_percentage"] < 100
        assert 0 <= record["values"].get(cpu, 0) <= 100
        assert record["values"]["system/process_memory_megabytes"] > 50, "torch alone is larger"
    steps = [record["step"] for record in found]
    assert steps == sorted(steps)
    assert steps[-1] == 18, "the last point is the end of the run"
    assert all(later["time"] - earlier["time"] > 0.01 for earlier, later in pairwise(found[:-1]))


def test_a_short_run_has_a_point_too(make: Any, tmp_path: Path) -> None:
    make({"system": SystemMetrics()}, work_dir=tmp_path).train()
    assert [record["step"] for record in samples(tmp_path)] == [18]


def test_the_thread_ends_with_the_run_however_that_ends(make: Any, tmp_path: Path) -> None:
    class Fail(Hook):
        def before_train(self, runner: Any) -> Any:
            raise RuntimeError("out of luck")

    before = set(threading.enumerate())
    runner = make({"system": SystemMetrics(every=1e30), "fail": Fail()}, work_dir=tmp_path)
    with pytest.raises(RuntimeError, match="out of luck"):
        runner.train()
    assert not set(threading.enumerate()) - before, "nobody waits for the next point"
    assert len(samples(tmp_path)) == 1


def test_a_run_without_a_journal_is_not_watched(make: Any) -> None:
    before = set(threading.enumerate())
    others = []

    class Count(Hook):
        def before_train(self, runner: Any) -> None:
            others.append(set(threading.enumerate()) - before)

    make({"system": SystemMetrics(), "count": Count()}).train()
    assert others == [set()]


@linux
def test_a_busy_process_is_seen() -> None:
    begin = monotonic()
    before, busy = _Clock(), process_time()
    while process_time() - busy < 0.1:
        sum(range(1000))
    values = _Clock().since(before)
    assert values["process_cpu_utilization_percentage"] >= 100 * 0.1 / (monotonic() - begin)
    assert values["cpu_utilization_percentage"] > 0


@linux
def test_memory_that_is_taken_is_seen() -> None:
    before = _memory()["process_memory_megabytes"]
    taken = np.frombuffer(mmap(-1, 50_000_000), dtype=np.uint8)  # of the system: freed memory may be in the heap still
    taken[:] = 1
    assert _memory()["process_memory_megabytes"] - before == pytest.approx(taken.size / 1e6, abs=10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_is_watched(make: Any, tmp_path: Path) -> None:
    make({"system": SystemMetrics()}, work_dir=tmp_path, device="cuda").train()
    (record,) = samples(tmp_path)
    values = {name.removeprefix("system/gpu_0_"): value for name, value in record["values"].items() if "gpu_" in name}
    assert 0 < values["memory_usage_percentage"] < 100
    assert 0 <= values["utilization_percentage"] <= 100
    assert values["memory_usage_megabytes"] > 100, "a CUDA context alone is larger"


@pytest.mark.parametrize("given", [0, -1, "often", float("nan")])
def test_seconds_that_cannot_be(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"every: .* is invalid. Expected a number of seconds above 0"):
        SystemMetrics(given)
