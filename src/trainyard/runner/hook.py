"""Base class of hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Hook:
    """Code that the Runner calls at named stages of a run, in order of priority.

    A hook defines a method for each stage at which it acts; the other stages cost nothing:

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
    | `before_val_loss` | `runner`: a validation turn of the loop's `workflow` starts |
    | `before_val_loss_iter`, `after_val_loss_iter` | the same arguments as for a training iteration |
    | `after_val_loss` | `runner, losses`: the means by name |
    | `after_idle_iter` | `runner, data_batch`: in an evaluation, only other ranks have more batches |
    | `before_save_checkpoint`, `after_load_checkpoint` | `runner, checkpoint, member`: a checkpoint and its member |
    | `before_leave` | `runner, leaving`: numbers of the members that end before other members of their stack |
    | `after_join` | `runner, joined`: numbers of the members that have joined the stack, and are restored |

    A hook that runs a model on every batch must also run the model in `after_idle_iter`, and discard the result. In the
    checkpoint stages, `checkpoint` is the dict that will be written or was read; `member` may be omitted.

    A custom loop may have additional stages. `runner.iter` and `runner.epoch` count completed iterations and epochs. In
    `after_train_iter`, they include the iteration that has just ended. `after_run` is always called, also after an
    error. A hook that records values records them for each of `runner.members`.

    A hook that supports several members sets `stackable = True`; a sweep does not stack jobs with other hooks. A
    stackable hook receives the losses of K members as `[K]` and the predictions as `[K, ...]`, in the order of
    `runner.members`. With several members, `metrics` and the means of `after_val_loss` are lists with one mapping per
    member. The checkpoint stages are called once for each member. `state_dict` and `load_state_dict` receive the index
    of a member.

    A hook may have an attribute `monitor` (the name of a metric, None for the objective) or `monitors` (a mapping from
    names of metrics to the arguments that set these names). If no metric has the name, the sanity check raises an error
    before the training.

    The members of a stack may be at different epochs, and a new member may take a lane while the other members
    continue. A hook that supports this sets `own_places = True`: it reads `member.iter` and `member.epoch`, skips
    members that are not `due` at a validation, and discards the state of a lane in `refill`. If a hook does not support
    this, all members of a stack are at the same position.

    In an iteration loop, the epochs of the members may end at different iterations. `after_train_epoch` is then called
    when the epoch of at least one member has ended. The members whose epoch has ended have `member.batches_done == 0`.
    `before_train_epoch` is called at the start of the stack's own epochs. A hook with one of these methods sets
    `own_epochs = True` if it supports these calls. If a hook does not support them, members join only when an epoch of
    the data ends for all members.

    Attributes:
        stackable: the hook supports several members.
        own_places: the hook supports members at different positions of the training.
        own_epochs: the hook supports members whose epochs end at different iterations.
        ranks: the ranks on which the hook runs: `all` ranks, only the `main` rank, or `one`: the hook supports only
            runs with one rank.
        priority: 0 (first) to 100, or HIGHEST, VERY_HIGH, HIGH, ABOVE_NORMAL, NORMAL, BELOW_NORMAL, LOW, VERY_LOW,
            LOWEST.
    """

    priority: int | str = "NORMAL"
    stackable: bool = False
    own_places: bool = False
    own_epochs: bool = False
    ranks: str = "all"

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        """Return the state of one member that a resumed run needs: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        """Restore the state of one member that `state_dict` returned."""

    def sanity_check(self, runner: Any) -> None:
        """Check the hook's requirements before training, such as its patterns; raise `ConfigError` if a check fails."""

    def metric_names(self, names: Sequence[str]) -> Sequence[str]:
        """Return the names of the results that this hook records at a validation; `names` are those of the metrics.

        A hook that monitors such a result must be called later: its priority has a higher number.
        """
        return ()

    def stack(self, hooks: Sequence[Hook]) -> None:
        """Adopt the differences between the members' own hooks, each of which was built from its member's config."""

    def refill(self, runner: Any, members: Mapping[int, Hook | None]) -> None:
        """Discard the state of lanes that now have another member or no member.

        Args:
            runner: the Runner; the new members are already in its lanes.
            members: for each lane, the new member's own hook, built from its config; None for a free lane.
        """

    def copy_lane(self, source: int, target: int) -> None:
        """Copy the state of a lane to another lane."""
        if state := self.state_dict(source):
            self.load_state_dict(state, target)

    def keep(self, members: Sequence[int]) -> None:
        """Continue with these members, in this order; the other members have left the stack."""
