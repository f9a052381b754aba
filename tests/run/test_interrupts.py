"""The line that a run prints when it is interrupted."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.run.interrupts import interruptible


@pytest.mark.parametrize(
    ("training", "saves", "told"),
    [(True, True, "saving a checkpoint"), (True, False, "ending the run"), (False, True, "ending the run")],
)
def test_only_an_interrupted_training_saves_a_checkpoint(
    training: bool, saves: bool, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """After the training, while the best checkpoint is tested, nothing is saved."""
    runner: Any = SimpleNamespace(training=training, strategy=SimpleNamespace(world_size=1), interrupt=lambda: None)
    with interruptible(runner, saves) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught == [signal.SIGTERM]
    assert f"Interrupted: {told}. Interrupt again" in capfd.readouterr().err
