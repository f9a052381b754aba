"""Last hook of a stack: members that have stopped leave the stack between two iterations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainyard.fused.runner import FusedRunner


class Cut:
    """Last hook of a stack: it removes members that have stopped."""

    priority = "LOWEST"
    own_places = own_epochs = True

    def before_train(self, runner: FusedRunner) -> None:
        runner.cut_ended()
        runner.clock.count_epochs()

    def before_train_epoch(self, runner: FusedRunner) -> None:
        runner.occupancy.count()

    def after_train(self, runner: FusedRunner) -> None:
        runner.occupancy.tell()

    def after_train_iter(self, runner: FusedRunner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        runner.clock.count_epochs()
        runner.cut()

    def after_train_epoch(self, runner: FusedRunner) -> None:
        runner.cut()

    def after_val(self, runner: FusedRunner) -> None:
        if runner.training:
            runner.clock.count_epochs()
            runner.cut()

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        """Do nothing: the hook has no state."""

    def refill(self, runner: FusedRunner, members: Any) -> None:
        """Do nothing."""

    def copy_lane(self, source: int, target: int) -> None:
        """Do nothing."""
