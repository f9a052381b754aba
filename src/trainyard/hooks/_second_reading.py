"""Check of hooks that read the training data during the training."""

from __future__ import annotations

from typing import Any

from trainyard.errors import ConfigError
from trainyard.runner import Runner
from trainyard.runner.hook import Hook


def check_second_reading(hook: Hook, runner: Runner) -> None:
    """Check that a hook can read the training data at a validation without a change of the training's own position.

    Raises:
        ConfigError: (under the key of the hook) the training and the hook would share one position.
    """
    loader: Any = runner.loader("train")
    # Without a state, the position between two epochs is always the start of an epoch.
    matters = runner.train_loop.unit == "iter" or getattr(loader, "has_state", False)
    if matters and getattr(loader, "one_position", False):
        raise ConfigError(
            "",
            type(hook).__name__,
            "training data that can be read a second time, or no such hook",
            hint="The training and the hook would share the position of this data: a stream or a loader with a "
            "state_dict, a data pipe, or a DataLoader class with its own __iter__ and persistent_workers.",
        )
