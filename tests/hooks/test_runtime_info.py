import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.hooks import Checkpoint, RuntimeInfo
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from trainyard.track import read


def _told(caplog: pytest.LogCaptureFixture) -> Any:
    return [record.getMessage() for record in caplog.records if record.name == "trainyard"]


def test_what_the_run_is_made_of(make: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        runner = make({"info": RuntimeInfo()}, work_dir=tmp_path)
        runner.train()
    count = sum(parameter.numel() for parameter in runner.model.parameters())
    assert _told(caplog) == [
        f"MLP with {count} parameters.",
        "192 samples, 6 batches of 32 per epoch; 3 epochs, 18 iterations.",
    ]
    tags = [record["tags"] for record, _ in read(tmp_path / "metrics.jsonl") if record["kind"] == "tags"]
    threads = str(torch.get_num_threads())
    assert tags == [{"model": "MLP", "parameters": str(count), "device": "cpu", "threads": threads}]


def test_a_run_that_only_validates(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make({"info": RuntimeInfo()}).val()
    assert _told(caplog) == ["MLP with 42 parameters."]


@pytest.fixture
def language(tmp_path: Path) -> Any:
    """A small transformer on a text of its own."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, and the rat sat on the cat. " * 40)
    return {
        "data": {"_target_": "trainyard.data.Text", "path": str(text), "context_length": 8, "batch_size": 64},
        "model": {
            "_target_": "trainyard.models.Transformer",
            "vocab_size": "auto",
            "context_length": "auto",
            "dim": 8,
            "heads": 2,
            "layers": 1,
        },
    }


def test_the_baseline_of_text_is_told_and_recorded_once(
    make: Any, points: Any, language: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    work_dir = tmp_path / "run"
    with caplog.at_level(logging.INFO, "trainyard"):
        for length in (1, 2):
            hooks = {"info": RuntimeInfo(), "checkpoint": Checkpoint()}
            runner = make(hooks, loop=EpochBasedTrainLoop(length), work_dir=work_dir, resume=True, **language)
            runner.train()
    baseline = runner.data.baselines("val")["bigram_loss"]
    assert 0 < baseline < 3
    assert _told(caplog).count(f"Baseline to beat: val/bigram_loss {baseline:.4f}.") == 2
    records = [
        record for record, _ in read(work_dir / "metrics.jsonl") if "val/bigram_loss" in record.get("values", {})
    ]
    assert [(record["step"], record["values"]["val/bigram_loss"]) for record in records] == [(0, baseline)]


def test_the_length_of_an_iteration_loop_in_epochs(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make({"info": RuntimeInfo()}, loop=IterBasedTrainLoop(13)).train()
    assert _told(caplog)[1].endswith("; 3 epochs, 13 iterations.")
