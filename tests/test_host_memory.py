"""Memory that a step frees stays with the process: counted in page faults, each time in a process of its own."""

import os
import subprocess
import sys
from typing import Any

import pytest
from waiting import LIMIT

from trainyard.host_memory import tunables

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is what is set here")

FREED_AND_TAKEN_AGAIN = """
import resource
import torch
from trainyard.runner import Env
Env(keep_memory={keep}).apply()

def step():
    torch.ones(10_000_000)  # by itself glibc maps blocks of more than 32 MiB each time

for _ in range(3):
    step()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(3)))  # of a system that takes pages back now and then, the count without that
"""


def page_faults(keep: Any, **variables: Any) -> Any:
    inherited = {key: value for key, value in os.environ.items() if "MALLOC" not in key and key != "GLIBC_TUNABLES"}
    environment = {**inherited, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", FREED_AND_TAKEN_AGAIN.format(keep=keep)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=LIMIT)
    return int(done.stdout)


def test_a_step_takes_no_new_pages() -> None:
    """A step's block is of 9,766 pages. The heap may grow by one of them, where something small lies above its end."""
    assert page_faults(keep=True) < 15_000
    assert page_faults(keep=False) > 150_000


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_says_stands(variable: str) -> None:
    value = "131072" if variable.startswith("MALLOC") else "glibc.malloc.trim_threshold=131072"
    assert page_faults(keep=True, **{variable: value}) > 150_000


def test_a_process_that_is_started_keeps_memory_too() -> None:
    started = {"GLIBC_TUNABLES": tunables({"GLIBC_TUNABLES": "glibc.cpu.hwcap_mask=0"})}
    assert started["GLIBC_TUNABLES"].startswith("glibc.cpu.hwcap_mask=0:glibc.malloc.hugetlb=1:")
    assert page_faults(keep=False, GLIBC_TUNABLES=tunables({})) < 15_000
