"""State of a member: the contents of its checkpoint, and how they are restored."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import trainyard
from trainyard.distributed import rank_state as ranks
from trainyard.distributed.shares import load_state, optimizer_state
from trainyard.errors import ConfigError, TrainyardError
from trainyard.optim import identity, without_dynamo
from trainyard.runner import checkpoint, override, weights
from trainyard.runner.member import Member
from trainyard.runner.switching import evaluated, switches
from trainyard.schedules.plateau import in_group_order
from trainyard.track import journal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Checkpoint with which a run starts: only its weights for `load_from`, otherwise its complete state.

    Attributes:
        key: the setting, or the argument of a method, that names the checkpoint.
        path: the file.
        state: its contents; for `load_from` the weights by name.
    """

    key: str
    path: Path
    state: dict[str, Any]

    @property
    def resumes(self) -> bool:
        return self.key != weights.KEY


def starting_point(member: Member) -> Start | None:
    """Return the checkpoint that `resume` or `load_from` names.

    Raises:
        ConfigError: the checkpoint is missing or damaged, or the directory already contains a run and `resume` is off.
    """
    if member.resume is True:
        if member.work_dir is None:
            raise ConfigError("resume", True, "false or the path of a checkpoint, because the run has no work_dir")
        names = checkpoint.read_last(member.checkpoints)
        found = _kept(member, [member.checkpoints / name for name in names[-1:]]) or checkpoint.newest(
            member.checkpoints
        )
        if found is not None:
            return Start("resume", *found)
        log.info("Nothing to resume in %s. Starting from the beginning.", member.work_dir, extra={"member": member})
    elif member.resume:
        found = _kept(member, [Path(member.resume)]) or checkpoint.given("resume", member.resume)
        return Start("resume", *found)
    elif member.runner.strategy.is_main and _holds_another_run(member):
        raise ConfigError(
            "work_dir",
            str(member.work_dir),
            "a directory without a run",
            hint="To continue the run in this directory, use resume=true.",
        )
    if member.load_from is not None:
        return Start(weights.KEY, *checkpoint.given(weights.KEY, member.load_from.path, weights.read))
    return None


def _kept(member: Member, paths: Sequence[Path]) -> tuple[Path, dict[str, Any]] | None:
    """Return the first of these checkpoints whose state is in memory, with this state; None if there is none."""
    if (kept := member.runner.kept_states) is not None:
        for path in paths:
            if (state := kept.state(path)) is not None:
                return path, state
    return None


def _holds_another_run(member: Member) -> bool:
    return member.work_dir is not None and not member.journal.writes and (member.work_dir / journal.FILE).exists()


def capture(
    member: Member, generators: dict[str, Any], reading: dict[str, Any], hooks: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the state of a member, as in its checkpoint; the tensors are not copies.

    Args:
        member: a member of any Runner; the checkpoint is that of a single run.
        generators: the state of the random generators in its single run.
        reading: the state of the `TrainingReader`.
        hooks: the states of the hooks; by default, the current ones.
    """
    runner = member.runner
    state = {
        "version": 1,
        "trainyard": trainyard.__version__,
        "seed": member.seed,
        "epoch": member.epoch,
        "iter": member.iter,
        "batches_done": member.batches_done,
        "data": reading,
        "model": member.model.state_dict(),
        "optimizer": without_dynamo.method(member.optimizer, "state_dict")() | {"type": _name(member.optimizer)},
        "parameters": identity.record(member.model, member.optimizer, member.beginning),
        "schedule": {"type": _name(member.schedule)} | (member.schedule.state_dict() if member.schedule else {}),
        "step": member.step_state(),
        "loop": member.loop_state(),
        "member": member.state_dict(),
        "hooks": member.hook_states() if hooks is None else hooks,
        "random": generators,
    }
    state = ranks.with_all(state, runner.strategy)
    if member.eval_model is not member.model:
        state["eval_model"] = member.eval_model.state_dict()
    elif switches(member.optimizer):
        with evaluated(member.optimizer):
            state["eval_model"] = copy_tensors(member.model.state_dict())
    return state


def copy_tensors(value: Any) -> Any:
    """Copy nested dicts, lists and tuples, with every tensor on the CPU, so that the copy does not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_tensors(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_tensors(entry) for entry in value)
    return value


def restore(member: Member, start: Start | None, *, weights_only: bool = False) -> None:
    """Restore a checkpoint: the complete state for a resume, or only the evaluated weights for loading.

    Raises:
        ConfigError: the checkpoint is from another architecture or another kind of training.
    """
    if start is None:
        return
    state, runner = start.state, member.runner
    if not start.resumes or weights_only:
        asked = None if start.resumes else member.load_from
        found = state.get("eval_model", state["model"]) if start.resumes else state
        told = weights.load(member.model, found, asked or weights.LoadFrom(start.path), start.key)
        log.info("Loaded the weights of %s: %s.", start.path, told, extra={"member": member})
        return
    with _of_this_training(start):
        state = ranks.of_one(state, runner.strategy)
        weights.load(member.model, state["model"], weights.LoadFrom(start.path), start.key)
        _restore_training(member, state)
    if member.work_dir is not None and start.path.resolve().parent != member.checkpoints:
        member.best = None  # its file is in another directory: the best is determined anew among the states saved here
    if state["seed"] != member.seed:
        log.warning(
            "The checkpoint was saved with seed %s, but this run has seed %s, so the order of the data can change.",
            *(state["seed"], member.seed),
            extra={"member": member},
        )
    runner.call("after_load_checkpoint", checkpoint=state, member=member)
    with _of_this_training(start):
        if "eval_model" in state and member.eval_model is not member.model:
            load_state(member.eval_model, state["eval_model"])
        if "random" in state:
            member.load_random_state(state["random"])
    place = (start.path, member.epoch, member.iter)
    log.info("Resumed %s: epoch %d, iteration %d.", *place, extra={"member": member})


@contextmanager
def _of_this_training(start: Start) -> Iterator[None]:
    """Name the checkpoint in an error of restoring it; a state of another kind can cause any error.

    Raises:
        ConfigError: the checkpoint cannot be restored.
    """
    try:
        yield
    except (TrainyardError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        accepted = "a checkpoint of this training"
        hint = f"The checkpoint does not match this run: {error}."
        raise ConfigError(start.key, str(start.path), accepted, hint=hint) from error


def _restore_training(member: Member, state: dict[str, Any]) -> None:
    """Restore everything except the weights.

    Raises:
        KeyError, ValueError: the state is from another kind of training.
    """
    optimizer, schedule = member.optimizer, member.schedule
    reading, done = _reading(state)
    reading, done, other_batches = override.position(member, reading, done, state["iter"])
    member.load_reading(reading, done)
    _check_equal("optimizer", state["optimizer"]["type"], _name(optimizer))
    _check_equal("schedule", state["schedule"]["type"], _name(schedule))
    saved = _untyped(state["optimizer"])
    bound = identity.bind(member.model, optimizer, member.beginning, state.get("parameters"), saved)
    config = override.options_of(optimizer)
    saved = optimizer_state(bound.optimizer(saved), optimizer)
    without_dynamo.method(optimizer, "load_state_dict")(saved)
    if schedule is not None:
        schedule.load_state_dict(in_group_order(_untyped(state["schedule"]), bound.groups))
    step = bound.step(state["step"])
    member.load_step_state(override.without_pending(step) if other_batches else step)
    member.load_state_dict(state["member"])
    member.load_hook_states(state["hooks"])
    member.load_position(state, done)
    override.reconcile(member, config, (state["schedule"].get("start") or {}).get("groups", []))


def _reading(state: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the state of the reader, and the number of completed batches in the epoch.

    Versions before this one counted the same number of batches, `len()` of the loader, in every epoch.
    """
    if "data" in state:
        return state["data"], state["batches_done"]
    return {"batches": state["batches"]}, max(0, state["iter"] - state["epoch"] * state["batches"])


def position_of(state: dict[str, Any]) -> tuple[int, int]:
    """Return the position of a checkpoint: the epoch, and the number of completed batches in it."""
    return state["epoch"], _reading(state)[1]


def _name(part: object) -> str | None:
    return None if part is None else getattr(part, "kind", type(part).__name__)


def _untyped(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "type"}


def _check_equal(what: str, saved: object, own: object) -> None:
    if saved != own:
        has = f"it has no {what}" if saved is None else f"its {what} is {saved}"
        raise ValueError(f"{has}, but this run has {'none' if own is None else own}")


def restore_best(member: Member) -> None:
    """Load the evaluated weights of the member's best checkpoint into the evaluated model, if there is one."""
    if member.work_dir is None or not (path := member.checkpoints / "best.pt").exists():
        return
    try:
        found = weights.read(path)
    except checkpoint.DamagedCheckpointError as error:
        log.warning("Using the last weights instead of the best: %s.", error, extra={"member": member})
    else:
        weights.load(member.eval_model, found, weights.LoadFrom(path))
