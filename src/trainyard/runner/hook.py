"""Base class of hooks."""

from __future__ import annotations

from collections.abc import Sequence
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
    | `before_val_loss` | `runner`: a turn of validation in the loop's `workflow` begins |
    | `before_val_loss_iter`, `after_val_loss_iter` | as the stages of a training iteration |
    | `after_val_loss` | `runner, losses`: the means by name |
    | `after_idle_iter` | `runner, data_batch`: this rank has no batch of an evaluation left and others have: what a
      hook puts through a model after every batch, it puts through here too, for nothing |
    | `before_save_checkpoint`, `after_load_checkpoint` | `runner, checkpoint, member`: the dict that is written, or was
      read, and whose it is; `member` may be left out |
    | `before_leave` | `runner, leaving`: numbers of members that end before the others of their fused group |

    A loop of the user's own may have further stages. `runner.iter` and `runner.epoch` count what is finished: in
    `after_train_iter` they include the iteration that has just ended. `after_run` is called however the run ended. A
    hook that writes does so for each of `runner.members`.

    A hook that knows of members says so with `stackable = True`; a sweep fuses no job that has another. To such a hook
    the losses of K members are `[K]` and the predictions `[K, ...]`, in the order of `runner.members`; the stages of a
    checkpoint are called once for each member. Its `state_dict` and `load_state_dict` take the index of a member.

    A hook with an attribute `monitor` (the name of a metric, None for the objective) or `monitors` (names, each to the
    argument that gave it) is told before the training where nobody computes one of these.

    Attributes:
        stackable: the hook works for several members at once.
        ranks: of a run on several devices, where the hook runs: on `all` ranks, on the `main` one alone, or `one`: it
            works on one device only.
        priority: 0 (first) to 100, or HIGHEST, VERY_HIGH, HIGH, ABOVE_NORMAL, NORMAL, BELOW_NORMAL, LOW, VERY_LOW,
            LOWEST.
    """

    priority: int | str = "NORMAL"
    stackable: bool = False
    ranks: str = "all"

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        """Return what a resumed run needs to go on, for one member: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        """Take back what `state_dict` gave."""

    def metric_names(self, names: Sequence[str]) -> Sequence[str]:
        """Return the names of what this hook itself records at a validation, given those of the metrics' results."""
        return ()

    def stack(self, hooks: Sequence[Hook]) -> None:
        """Take over what differs between the members' own hooks, each of which was made from its member's config."""

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members, in this order; the others have left."""
