"""Parameters that a run starts to train after its start."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.nn import Parameter

from trainyard.errors import ConfigError, TrainyardError, some
from trainyard.models.freeze import unfreeze as give_gradients
from trainyard.optim.for_model import add
from trainyard.optim.identity import held_by

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner

log = logging.getLogger(__name__)

SHOWN = 3  # names in a message


def unfreeze(runner: Runner, patterns: Sequence[str], key: str = "unfreeze") -> list[str]:
    """Train the parameters that match a pattern from here on; see `Runner.unfreeze`."""
    names = give_gradients(runner.model, patterns, key)
    join(runner)
    return names


def notice(runner: Runner) -> None:
    """Call `join` for parameters to which a hook has given gradients without `Runner.unfreeze`."""
    if any(parameter.requires_grad for parameter in runner.beginning.frozen.values()):
        join(runner)


def join(runner: Runner) -> None:
    """Add to the optimizer the parameters that have gradients now, and were frozen or absent when it was built.

    Raises:
        TrainyardError: they cannot be trained: the run is on several devices, or it is a stack.
    """
    if not runner.training or not (new := _new(runner)):
        return
    names, told = list(new), some(new, SHOWN)
    if runner.stacked:
        raise TrainyardError(
            f"The trained parameters of a stack cannot change: {told} cannot be added. To train the jobs of this sweep "
            "one by one, use hydra.launcher.fuse=off."
        )
    if runner.strategy.world_size > 1:
        accepted = "single, because parameters are unfrozen during the run"
        hint = f"On several devices, the trained parameters are fixed at the start: {told} cannot be added."
        raise ConfigError("strategy", type(runner.strategy).__name__, accepted, hint=hint)
    add(runner.optimizer, runner.settings["optim"], runner.model, names)
    for parameter in new.values():
        parameter.grad = None  # from batches before it was trained
    runner.model.train(runner.model.training)  # a module that was completely frozen leaves evaluation mode
    _schedule(runner)
    place = f"epoch {runner.epoch + 1}" if runner.train_loop.unit == "epoch" else f"iteration {runner.iter + 1}"
    log.info("These parameters are trained from %s on: %s.", place, told, extra={"member": runner.members[0]})


def check_none_missed(runner: Runner) -> None:
    """Warn of parameters that were never trained; `notice` searches for unfrozen ones between two epochs."""
    if new := _new(runner):
        log.warning(
            "These parameters require gradients, but are not trained by any optimizer: %s. Use Runner.unfreeze "
            "to train them.",
            some(new, SHOWN),
        )


def _new(runner: Runner) -> dict[str, Parameter]:
    """Return the parameters that have gradients but were unknown to the optimizer and its builder."""
    left_out, held = set(runner.beginning.left_out), held_by(runner.optimizer)
    return {
        name: parameter
        for name, parameter in runner.model.named_parameters()
        if parameter.requires_grad and id(parameter) not in held and name not in left_out
    }


def _schedule(runner: Runner) -> None:
    """Write the current row of the schedule into the new groups, if a hook does so for the others."""
    schedule = runner.schedule
    if schedule is None or not runner.dispatch.applies_schedule:
        return
    schedule.follow(runner.optimizer)
    index = runner.iter if (schedule.by or runner.train_loop.unit) == "iter" else runner.epoch
    for group, row in zip(runner.optimizer.param_groups, schedule.row(index), strict=True):
        group.update(row)
