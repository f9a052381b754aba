"""Values that a resumed run takes from its config instead of its checkpoint: the setting `resume_override`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from trainyard.errors import ConfigError
from trainyard.optim import SAM
from trainyard.optim.identity import optimizers_of

if TYPE_CHECKING:
    from trainyard.runner.member import Member

log = logging.getLogger(__name__)

KEY = "resume_override"
BATCH_SIZE = "data.batch_size"
FLAGS = ("foreach", "fused", "capturable", "differentiable")
"""Options of an optimizer that affect how it computes, not what."""

Options = dict[str, list[Any]]
"""The options of an optimizer by their keys in the config, each with its value in every parameter group."""


def parse(given: Any) -> tuple[str, ...]:
    """Return the keys that the setting names.

    Raises:
        ConfigError: the value is not a list of keys that can be overridden.
    """
    keys = [] if given is None else given
    accepted = f"null, or a list of keys of optim and {BATCH_SIZE}, such as [optim.lr, {BATCH_SIZE}]"
    if isinstance(keys, str) or not isinstance(keys, Sequence):
        raise ConfigError(KEY, given, accepted)
    for key in keys:
        if not isinstance(key, str) or (key != BATCH_SIZE and not key.startswith("optim.")):
            raise ConfigError(KEY, key, accepted, options=[BATCH_SIZE, "optim.lr", "optim.weight_decay"])
    return tuple(keys)


def options_of(optimizer: Any) -> Options:
    """Return the options with which an optimizer was built, or its current ones."""
    found: Options = {}
    for name, part in optimizers_of(optimizer).items():
        place = ".".join(word for word in ("optim", name) if word)
        taken = _arguments(part)
        for key in part.param_groups[0] if part.param_groups else ():
            if key in taken and key not in FLAGS:
                found[f"{place}.{key}"] = [_plain(group[key]) for group in part.param_groups if key in group]
    return found


def reconcile(member: Member, config: Options, base: Sequence[Mapping[str, Any]]) -> None:
    """Give the optimizer, whose state was loaded, the options that the config overrides; log the others.

    Args:
        member: the resumed member, including its schedule.
        config: the options of the optimizer in the config.
        base: the groups with which the saved schedule started; empty if unknown.
    """
    given = parse(member.settings[KEY])
    asked = [key for key in given if key != BATCH_SIZE]
    saved = options_of(member.optimizer)
    for key in asked:
        if key not in saved:
            raise ConfigError(KEY, key, f"one of {', '.join([*saved, BATCH_SIZE])}", options=saved)
    driven = _driven(member)
    for key, own in config.items():
        option = key.rpartition(".")[2]
        theirs = saved.get(key, own)
        if option in driven:
            theirs = [_plain(group.get(option)) for group in base] or own
        own = own[: len(theirs)]
        if own == theirs[: len(own)]:
            if key in asked:
                log.info("%s has the same value as in the checkpoint: %s.", key, _shown(own), extra={"member": member})
        elif key in asked:
            note(member, key, _shown(theirs), _shown(own), member.iter)
            if option not in driven:
                _write(member.optimizer, key, own)
        elif option in driven:
            log.warning(
                "%s was %s in the checkpoint; the schedule continues from the config's %s. To confirm this "
                "change, set %s=[%s].",
                *(key, _shown(theirs), _shown(own), KEY, ",".join([*given, key])),
                extra={"member": member},
            )
        else:
            for kept in (member.info.params, member.info.settings):  # the run keeps the param that it has
                kept.pop(key, None)
            log.warning(
                "%s keeps the value of the checkpoint, %s, and the config's %s is ignored. To use the value "
                "of the config, set %s=[%s].",
                *(key, _shown(theirs), _shown(own), KEY, ",".join([*given, key])),
                extra={"member": member},
            )


def position(member: Member, reading: dict[str, Any], done: int, iteration: int) -> tuple[dict[str, Any], int, bool]:
    """Return the state of the reader and the number of batches done in the epoch, for the config's batch size.

    Within an epoch, the number of completed samples is kept, rounded down to complete batches and groups of batches.
    The last value tells whether the size has changed.

    Args:
        member: the resumed member, whose position is not restored yet.
        reading: the state of the reader in the checkpoint.
        done: the number of completed batches in the epoch of the checkpoint.
        iteration: the iteration of the checkpoint.

    Raises:
        ValueError: the size changes within an epoch of a stream, whose position is known only in its own batches.
    """
    own, saved = member.runner.reader.loader.batch_size, reading.get("batch_size")
    if BATCH_SIZE not in parse(member.settings[KEY]) or saved in (None, own):
        return reading, done, False
    if done and "place" in reading:
        raise ValueError(
            f"the number of batches in an epoch is not known in advance, and the checkpoint was saved within an epoch "
            f"with {BATCH_SIZE}={saved}. Use this value, or resume from the end of an epoch"
        )
    group = member.runner.step.accumulate
    batches = done * int(saved) // int(own)
    note(member, BATCH_SIZE, str(saved), str(own), iteration)
    return {"batches": None, "batch_size": own}, batches - batches % group, True


def note(member: Member, key: str, old: str, new: str, iteration: int) -> None:
    """Log a value that the config overrides from `iteration` on, and record it with the run."""
    log.warning(
        "%s is now %s instead of %s.",
        *(key, new, old),
        extra={"member": member},
    )
    member.notes[f"{KEY}.{key}"] = f"{old} -> {new} at iteration {iteration}"


def without_pending(step: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a step without the gradients of an incomplete group of batches."""
    group = step.get("group")
    return step | {"gradients": None, "group": group and group | {"samples": None, "items": None}}


def _arguments(optimizer: Any) -> set[str]:
    """Return the names of the options: the arguments of its class; for a member of a stack, all entries of a group."""
    if isinstance(optimizer, Optimizer):
        parts = [optimizer, *([optimizer.base] if isinstance(optimizer, SAM) else [])]
        return {key for part in parts for key in inspect.signature(type(part).__init__).parameters} - {"self", "params"}
    return {key for key in optimizer.param_groups[0] if key not in ("params", "name", "initial_lr")}


def _driven(member: Member) -> set[str]:
    """Return the options that the schedule writes."""
    schedule = member.schedule
    if schedule is None or getattr(schedule, "constant", False):
        return set()
    unit = schedule.by or member.runner.train_loop.unit
    rows = schedule.row(member.epoch if unit == "epoch" else member.iter)
    return {key for row in rows for key in row}


def _write(optimizer: Any, key: str, values: Sequence[Any]) -> None:
    place, _, option = key.rpartition(".")
    part = optimizers_of(optimizer)[place.partition(".")[2]]
    of_stack = not isinstance(part, Optimizer)  # its groups are copies of rows
    state = part.state_dict() if of_stack else {}
    for group, value in zip(state["param_groups"] if of_stack else part.param_groups, values, strict=False):
        group[option] = tuple(value) if isinstance(value, list) else value
    if of_stack:
        part.load_state_dict(state)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _shown(values: Sequence[Any]) -> str:
    distinct = [each for index, each in enumerate(values) if each not in values[:index]]
    return " and ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in distinct)
