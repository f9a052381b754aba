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
    | `before_val_loss` | `runner`: a validation turn of the loop's `workflow` begins |
    | `before_val_loss_iter`, `after_val_loss_iter` | as the stages of a training iteration |
    | `after_val_loss` | `runner, losses`: the means by name |
    | `after_idle_iter` | `runner, data_batch`: this rank has no evaluation batch left and others have one. A hook that
      runs a model after every batch must run it here too, and discard the result |
    | `before_save_checkpoint`, `after_load_checkpoint` | `runner, checkpoint, member`: the dict that is written, or was
      read, and its member; `member` may be omitted |
    | `before_leave` | `runner, leaving`: numbers of the members that end before the others of their stack |
    | `after_join` | `runner, joined`: numbers of the members that have joined the stack, and are restored |

    A custom loop may have further stages. `runner.iter` and `runner.epoch` count finished iterations and epochs: in
    `after_train_iter` they include the iteration that has just ended. `after_run` is called however the run ended. A
    hook that writes does so for each of `runner.members`.

    A hook that supports several members sets `stackable = True`; a sweep does not stack a job that has any other hook.
    Such a hook gets the losses of K members as `[K]` and the predictions as `[K, ...]`, in the order of
    `runner.members`; the stages of a checkpoint are called once for each member. Its `state_dict` and `load_state_dict`
    take the index of a member.

    A hook may have an attribute `monitor` (the name of a metric, None for the objective) or `monitors` (a mapping from
    names of metrics to the argument that gave each). If no metric of such a name is computed, the sanity check raises
    an error before the training.

    The members of a stack may stand at different epochs, and a lane may be given to another member while the others
    go on. A hook that supports that sets `own_places = True`: it reads `member.iter` and `member.epoch`, skips members
    that are not `due` at a validation, and discards the state of a lane in `refill`. Where a hook does not, the members
    of a stack stand at one place.

    In a loop by iterations the members' epochs of the data may end at different iterations. `after_train_epoch` is then
    called whenever the epoch of any member has ended: of those with `member.batches_done == 0`. `before_train_epoch` is
    called as the stack's own epochs begin. A hook with one of these methods sets `own_epochs = True` if it supports
    that. Where a hook does not, members join only where an epoch of the data ends for all.

    Attributes:
        stackable: the hook supports several members at once.
        own_places: the hook supports members at different places of the training.
        own_epochs: it supports members whose epochs end at different iterations.
        ranks: where the hook runs if a run has several devices: on `all` ranks or on the `main` one only; `one` if the
            hook supports a single device only.
        priority: 0 (first) to 100, or HIGHEST, VERY_HIGH, HIGH, ABOVE_NORMAL, NORMAL, BELOW_NORMAL, LOW, VERY_LOW,
            LOWEST.
    """

    priority: int | str = "NORMAL"
    stackable: bool = False
    own_places: bool = False
    own_epochs: bool = False
    ranks: str = "all"

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        """Return what a resumed run needs to continue, for one member: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        """Restore what `state_dict` returned, for one member."""

    def sanity_check(self, runner: Any) -> None:
        """Test before the training what only this hook needs, such as its patterns; raise `ConfigError` if it fails."""

    def metric_names(self, names: Sequence[str]) -> Sequence[str]:
        """Return the names of what this hook itself records at a validation, given those of the metrics' results."""
        return ()

    def stack(self, hooks: Sequence[Hook]) -> None:
        """Take over what differs between the members' own hooks, each of which was made from its member's config."""

    def refill(self, runner: Any, members: Mapping[int, Hook | None]) -> None:
        """Forget what was kept for lanes that other members, or none, have now.

        Args:
            runner: the Runner; its lanes hold the new members.
            members: by lane, the new member's own hook, made from its config; None for a free lane.
        """

    def copy_lane(self, source: int, target: int) -> None:
        """Copy the state of a lane to another lane."""
        if state := self.state_dict(source):
            self.load_state_dict(state, target)

    def keep(self, members: Sequence[int]) -> None:
        """Continue with these members, in this order; the others have left the stack."""
