"""Several schedules of one optimizer as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trainyard.errors import ConfigError
from trainyard.schedules.schedule import Schedule


class Several(Schedule):
    """Schedules of different values, for different parts of the run, or both. Each schedule has its own unit.

    Each schedule is created at its start, with the current value. If several schedules change one value at the same
    time, they are stepped one after another, as in torch's `ChainedScheduler`. Factors (a warm-up, steps, a cosine) are
    multiplied. A scheduler that computes the value from the optimizer's initial value (`LambdaLR`, `OneCycleLR`, a
    sequence, …) replaces the result of the earlier schedulers.

    If the units differ, a row is an iteration, and schedules by epoch are stepped at the start of each epoch.

    Args:
        schedules: a mapping with names, or a list; entries that are None are omitted.

    Raises:
        ConfigError: an entry is not a `Schedule`.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from torch.optim.lr_scheduler import LinearLR, StepLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> warmup = Schedule(partial(LinearLR, start_factor=0.5, total_iters="auto"), end=4, by="iter")
        >>> drops = Schedule(partial(StepLR, step_size=1), by="epoch")
        >>> schedule = Several({"warmup": warmup, "drops": drops})
        >>> schedule.bind(optimizer, length=20, epoch_length=10)
        >>> [schedule.row(iteration)[0]["lr"] for iteration in (0, 2, 4, 10)]
        [0.5, 0.75, 1.0, 0.1]
    """

    def __init__(self, schedules: Mapping[str, Schedule | None] | Sequence[Schedule | None]) -> None:
        if not isinstance(schedules, (Mapping, list, tuple)):
            raise ConfigError("schedules", type(schedules).__name__, "a mapping of names to schedules, or a list")
        super().__init__()
        for name, given in schedules.items() if isinstance(schedules, Mapping) else enumerate(schedules):
            key = f"schedules.{name}"
            if given is None:
                continue
            if type(given) not in (Schedule, Several):
                raise ConfigError(key, type(given).__name__, "a trainyard.schedules.Schedule or Several, or null")
            self._plans += [replace(plan, key=".".join(filter(None, (key, plan.key)))) for plan in given._plans]
        clocks = {plan.clock for plan in self._plans}
        self.by = "iter" if len(clocks) > 1 else next(iter(clocks), None)
        self.constant = not self._plans
