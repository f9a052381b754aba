"""The Runner on a CUDA device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.runner import Env, Runner, checkpoint

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_it_learns_in_every_precision(parts: Any, precision: str) -> None:
    parts |= {"device": "cuda", "precision": precision, "clip_grad_norm": 1.0}
    parts["loop"]["max_epochs"] = 15
    (metrics,) = Runner(**parts).train()
    assert metrics["val/accuracy"] > 0.9


def test_auto_is_cuda(parts: Any) -> None:
    parts["device"] = "auto"
    runner = Runner(**parts)
    assert runner.device.type == "cuda"
    runner.train()
    assert all(parameter.is_cuda for parameter in runner.model.parameters())


def test_the_same_bits_when_resumed(parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    parts |= {"device": "cuda", "env": Env(deterministic=True)}
    parts["model"]["dropout"] = 0.3
    states = []
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        for epochs in stops:
            parts["loop"]["max_epochs"] = epochs
            Runner(**parts, work_dir=tmp_path / name, resume=True).train()
        states.append(checkpoint.newest(tmp_path / name / "checkpoints")[1])
    torch.use_deterministic_algorithms(False)
    for name, weight in states[0]["model"].items():
        assert torch.equal(weight, states[1]["model"][name])


def test_a_checkpoint_of_the_gpu_loads_on_the_cpu(parts: Any, tmp_path: Path) -> None:
    Runner(**(parts | {"device": "cuda"}), work_dir=tmp_path / "run").train()
    runner = Runner(**(parts | {"device": "cpu"}), load_from=tmp_path / "run/checkpoints/best.pt")
    (metrics,) = runner.test()
    assert metrics["test/accuracy"] >= 0


def test_losses_stay_on_the_device(parts: Any) -> None:
    runner = Runner(**(parts | {"device": "cuda", "capture": False}))
    runner.prepare()
    batch = next(iter(runner.loader("train").batches()))
    torch.cuda.set_sync_debug_mode("error")  # a step that waits for the device raises
    try:
        outputs = runner.step(batch, 0, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outputs["loss"].is_cuda
