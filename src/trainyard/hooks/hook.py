"""The base of every hook."""

from __future__ import annotations

from typing import Any


class Hook:
    """Code that the Runner calls at named stages of a run, in order of priority.

    A hook defines a method for each stage at which it has something to do, and pays for no other:

    | stage | arguments |
    |---|---|
    | `before_run`, `after_run` | `runner` |
    | `before_train`, `after_train`, `before_train_epoch`, `after_train_epoch` | `runner` |
    | `before_train_iter` | `runner, batch_idx, data_batch` |
    | `after_train_iter` | `runner, batch_idx, data_batch, outputs`: the losses, tensors on the device |
    | `before_val`, `after_val`, `before_val_epoch`; the same for `test` | `runner` |
    | `before_val_iter`; the same for `test` | `runner, batch_idx, data_batch` |
    | `after_val_iter`; the same for `test` | `runner, batch_idx, data_batch, outputs`: the predictions |
    | `after_val_epoch`; the same for `test` | `runner, metrics`: the results by name |
    | `before_save_checkpoint`, `after_load_checkpoint` | `runner, checkpoint`: the dict that is written, or was read |

    `runner.iter` and `runner.epoch` count what is finished: in `after_train_iter` they include the iteration that has
    just ended. `after_run` is called however the run ended. A hook that writes does so for each of `runner.members`.

    Attributes:
        priority: 0 (first) to 100, or HIGHEST, VERY_HIGH, HIGH, ABOVE_NORMAL, NORMAL, BELOW_NORMAL, LOW, VERY_LOW,
            LOWEST.
    """

    priority: int | str = "NORMAL"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
