"""Parameter-schedule hook: writes the values of each epoch or iteration into the optimizer."""

from __future__ import annotations

from typing import Any

from trainyard.runner import Runner
from trainyard.runner.hook import Hook


class ParamSchedule(Hook):
    """Writes the schedule's row into the optimizer's parameter groups before each epoch or iteration.

    A schedule that depends on a metric (`plateau`) receives the value of the metric after each validation of the
    training.
    """

    priority = "HIGH"
    stackable = True
    own_places = own_epochs = True
    applies_schedule = True

    def before_train(self, runner: Runner) -> None:
        schedule: Any = runner.schedule
        self._by_iter = schedule is not None and (schedule.by or runner.train_loop.unit) == "iter"
        self._by_epoch = schedule is not None and not self._by_iter
        foresee = getattr(runner.step, "foresee", None)  # only a captured step has it
        ahead = getattr(schedule, "ahead", None)
        if foresee is not None and ahead is not None and self._by_iter and not schedule.constant:
            foresee(lambda: ahead(runner.iter))

    def before_train_epoch(self, runner: Runner) -> None:
        if self._by_epoch:
            self._apply(runner, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        if self._by_iter:
            self._apply(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not runner.training or not hasattr(runner.schedule, "observe"):
            return
        schedule: Any = runner.schedule
        name = schedule.monitor or runner.members[0].objective.name
        due = [member.latest(name, "schedule.monitor") if member.due else None for member in runner.members]
        if runner.stacked:
            schedule.observe(*due)
        else:
            schedule.observe(due[0])

    @staticmethod
    def _apply(runner: Runner, index: int) -> None:
        schedule, groups = runner.schedule, runner.optimizer.param_groups
        assert schedule is not None
        rows = schedule.row(index)
        if len(rows) != len(groups):  # a hook has added some
            schedule.follow(runner.optimizer)
            rows = schedule.row(index)
        for group, row in zip(groups, rows, strict=True):
            group.update(row)
