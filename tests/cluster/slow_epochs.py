"""Hook that makes epochs slow until a file is there: a training is in its middle for as long as a test needs it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from trainyard.hooks import Hook

SECONDS = 6.0


class SlowEpochs(Hook):
    """Sleeps after each epoch while the file that `GO` names is missing, until the training is asked to end."""

    priority = "LOWEST"  # the epoch's checkpoint comes first

    def after_train_epoch(self, runner: Any) -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and not Path(os.environ["GO"]).exists() and not runner.asked_to_end:
            time.sleep(0.05)
