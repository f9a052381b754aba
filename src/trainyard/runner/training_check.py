"""Check of the training before it starts: one step, and one checkpoint that is written and read."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from trainyard import rng_state
from trainyard.data.lengths import exact_length
from trainyard.errors import ConfigError, TrainyardError
from trainyard.files import writing
from trainyard.runner import checkpoint
from trainyard.runner.batch_checks import in_range
from trainyard.runner.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from trainyard.runner.state import capture

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner


def check(runner: Runner, *, resumes: bool) -> None:
    """Perform one optimizer step on the first batch, write and read a checkpoint, and restore everything.

    Args:
        runner: a Runner that is ready to train.
        resumes: whether it continues from a checkpoint.

    Raises:
        ConfigError: a checkpoint would contain an object that is neither a tensor nor a plain value.
    """
    if not _can_be_tried(runner, resumes):
        return
    training, before = runner.model.training, runner.snapshot()
    try:
        with rng_state.seeded(runner.seed):
            runner.seed_generators()  # a stream that is opened here is the one that will be trained on
            batch = runner.reader.look_ahead()
            runner.model.train()
            # The members of a stack have different batches inside vmap, which cannot read a value.
            with nullcontext() if runner.stacked else in_range(runner, "train"):
                runner.step.uncaptured(batch, 0, 1)
            if writes_checkpoints(runner):
                _try_checkpoint(runner)
    except Exception as error:
        if not isinstance(error, TrainyardError):
            error.add_note(
                "The error occurred in the sanity check before the training; sanity_check=false skips this check."
            )
        raise
    finally:
        before.restore()
        if runner.model.training != training:
            runner.model.train(training)


def writes_checkpoints(runner: Runner) -> bool:
    """Return whether a hook of the run saves checkpoints."""
    return any(getattr(hook, "writes_checkpoints", False) for hook in runner.dispatch.hooks.values())


def _can_be_tried(runner: Runner, resumes: bool) -> bool:
    """Return whether a training step can be performed without side effects.

    The ranks of several devices would start their training with other groups of gradients; a resumed stream is not read
    from its beginning; a custom loop may call its step in another way; and parameters without a shape would get their
    initial values.
    """
    kind = type(runner.train_loop)
    usual = any(
        getattr(kind, "run_epoch", None) is loop.run_epoch for loop in (EpochBasedTrainLoop, IterBasedTrainLoop)
    )
    stream = exact_length(runner.loader("train")) is None
    lazy = any(is_lazy(tensor) for tensor in (*runner.model.parameters(), *runner.model.buffers()))
    return runner.strategy.world_size == 1 and usual and not (stream and resumes) and not lazy


def _try_checkpoint(runner: Runner) -> None:
    """Write a checkpoint into an unnamed file on the disk of the run, and read it.

    Raises:
        ConfigError: it contains an object that is neither a tensor nor a plain value.
    """
    if runner.work_dir is None:
        return
    member, generators = runner.members[0], rng_state.state()
    reading, hooks = runner.reader.state_dict(0, 0), _hook_states(runner)
    state = capture(member, member.random_state(generators), reading, hooks)
    folder = next(each for each in (runner.work_dir, *runner.work_dir.parents) if each.is_dir())
    with writing(member.checkpoints), tempfile.TemporaryFile(dir=folder) as file:
        try:
            torch.save(state, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except checkpoint.NOT_PLAIN as error:
            found = _not_plain(state)
            if found is None:
                raise
            raise found from error


def _hook_states(runner: Runner) -> dict[str, Any]:
    states = {}
    for name, hook in runner.dispatch.hooks.items():
        with suppress(Exception):  # before its `before_train` a hook need not have any
            states[name] = hook.state_dict(*([0] if runner.stacked else []))
    return states


def _not_plain(state: dict[str, Any]) -> ConfigError | None:
    """Return the error for a state that a checkpoint cannot contain; None if each single value is plain."""
    found = checkpoint.misfit(state)
    if found is None:
        return None
    (part, *inside), value = found
    key = ".".join(("hook", *inside[:1])) if part == "hooks" else part
    place = ".".join(inside[1:] if part == "hooks" else inside)
    hint = f"The value is in state_dict(), under {place!r}." if place else ""
    return ConfigError(
        key, value, "tensors and plain values, because a checkpoint cannot contain other objects", hint=hint
    )
