"""Settings of the process and names of devices."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainyard.errors import ConfigError
from trainyard.models import MLP
from trainyard.runner import Env, Runner
from trainyard.runner.env import describe, find_device


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts the process's settings back."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "kept")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    if torch.are_deterministic_algorithms_enabled():  # asking costs a second
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads: int) -> None:
    Env(threads=threads).apply()
    assert torch.get_num_threads() == threads


def test_threads_stay_as_they_are() -> None:
    before = torch.get_num_threads()
    Env().apply()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_threads_that_cannot_be(threads: float | str) -> None:
    with pytest.raises(ConfigError, match=r"threads: .* an integer from 1 to 4096"):
        Env(threads=threads)


def test_deterministic_is_for_the_run_that_asks_for_it() -> None:
    Env(deterministic=True).apply()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    Env().apply()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_a_workspace_that_is_configured_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    Env(deterministic=True).apply()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_runner_applies_it_before_anything_is_built() -> None:
    Runner(MLP(2, 2), env={"_target_": "trainyard.runner.Env", "deterministic": True}, device="cpu")
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("given", [2.5, -0.5, True, 10**30, [], {}])
def test_what_is_no_name_of_a_device(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^device: .* is invalid. Expected one of auto, cpu"):
        find_device(given)


@pytest.mark.parametrize("given", ["cpu", torch.device("cpu")])
def test_the_cpu(given: Any) -> None:
    assert find_device(given) == torch.device("cpu")


@pytest.mark.parametrize(("threads", "words"), [(1, "cpu (1 thread)"), (2, "cpu (2 threads)")])
def test_the_cpu_in_words(threads: int, words: str) -> None:
    Env(threads=threads).apply()
    assert describe(torch.device("cpu")) == words


def test_auto() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["coda", "cdua", "gpu", "cpu:x", ""])
def test_a_name_that_torch_does_not_know(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device: .* Expected one of auto, cpu"):
        find_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        find_device(name)


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_other_devices_are_tried(name: str) -> None:
    """`meta` is there, but no number can be read from it; the others this build of torch may lack."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, NotImplementedError, AssertionError):
        with pytest.raises(ConfigError, match="has no such device to train on"):
            find_device(name)
    else:
        assert find_device(name).type == name


def test_other_accelerators_are_among_the_accepted_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for name in ("cuda", "xpus", "meta"):
        with pytest.raises(ConfigError, match=r"Expected one of auto, cpu, xpu, xpu:0, xpu:1\."):
            find_device(name)


@pytest.mark.gpu
def test_cuda_devices() -> None:
    assert find_device("cuda").type == "cuda"
    assert torch.cuda.get_device_name(0) in describe(torch.device("cuda:0"))
    with pytest.raises(ConfigError, match="cuda:0"):
        find_device(f"cuda:{torch.cuda.device_count()}")
