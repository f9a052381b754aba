"""What a run says of the machine and the libraries that it ran on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from waiting import LIMIT

from trainyard.track import NoTracker, RunInfo, facts


def test_the_text_has_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    found = facts.collect(tmp_path)
    text = found["environment"]
    lines = dict(line.split(": ", 1) for line in text.partition("\n\n")[0].splitlines())
    assert lines["sys.platform"] == sys.platform
    assert sys.version.split()[0] in lines["python"]
    assert lines["version.torch"] == torch.__version__
    assert {"version.numpy", "version.hydra-core", "host.cpu", "host.memory"} <= lines.keys()
    assert (lines["OMP_NUM_THREADS"], lines["CUBLAS_WORKSPACE_CONFIG"]) == ("3", ":16:8")
    assert torch.__config__.show() in text
    assert "at::get_num_threads" in text
    assert "s3cret" not in text


def test_it_is_a_file_of_the_run(tmp_path: Path) -> None:
    info = NoTracker().open(tmp_path, RunInfo(name="a", facts={"environment": "text\n", "git.commit": "c0ffee"}))
    assert (tmp_path / "environment.txt").read_text() == "text\n"
    assert info.facts == {"git.commit": "c0ffee"}


def test_torch_is_asked_only_where_it_is_there() -> None:
    code = """
import sys
from trainyard.track import facts
text = facts.collect(".")["environment"]
assert "torch" not in sys.modules
assert "version.torch" in text
assert "PyTorch built with" not in text
"""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_driver_and_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of /proc/driver/nvidia, as the driver writes them."""
    for number, model in enumerate(["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "NVIDIA T4"]):
        folder = tmp_path / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 45\nGPU UUID: \t GPU-1\n")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: gcc 12\n"
    )
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(facts, "DRIVER", tmp_path)
    monkeypatch.setenv("PATH", str(compiler.parent), prepend=":")
    found = facts.collect(tmp_path)
    assert found["cuda.devices"] == "2 x NVIDIA H100 80GB HBM3, 1 x NVIDIA T4"
    assert found["cuda.driver"] == "550.54.15"
    assert "nvcc: 12.4, V12.4.131\n" in found["environment"]


def test_a_machine_without_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "DRIVER", tmp_path / "none")
    found = facts.collect(tmp_path)
    assert not {"cuda.devices", "cuda.driver"} & found.keys()
    assert "nvcc" not in found["environment"]


@pytest.mark.gpu
def test_the_gpu_is_named_without_touching_cuda(tmp_path: Path) -> None:
    code = """
import torch
from trainyard.track import facts
found = facts.collect(".")
assert not torch.cuda.is_initialized()
assert torch.cuda.get_device_name(0) in found["cuda.devices"], found
assert found["cuda.version"] == torch.version.cuda
assert found["cuda.cudnn"] == str(torch.backends.cudnn.version())
assert "NVCC" in found["environment"] or "CUDA" in found["environment"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=LIMIT)
