"""The state of a run: what a checkpoint holds, and how a run takes it up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

import trainyard
from trainyard.distributed import rank_state as ranks
from trainyard.distributed.shares import optimizer_state
from trainyard.errors import ConfigError
from trainyard.optim import plain
from trainyard.runner import checkpoint, random, weights
from trainyard.runner.contract import RunState
from trainyard.track import journal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A checkpoint that a run begins with: all of it where it resumes, its weights alone where it loads.

    Attributes:
        key: the setting that asks for it.
        path: its file.
        state: what it holds; where it loads, the weights by name.
    """

    key: str
    path: Path
    state: dict[str, Any]

    @property
    def resumes(self) -> bool:
        return self.key == "resume"


def starting_point(runner: RunState) -> Start | None:
    """The checkpoint that `resume` or `load_from` asks for.

    Raises:
        ConfigError: it is absent or damaged; or the directory holds a run already and `resume` is off.
    """
    if runner.resume is True:
        if runner.work_dir is None:
            raise ConfigError("resume", True, "the path of a checkpoint, where the Runner has no work_dir")
        found = checkpoint.newest(runner.members[0].checkpoints)
        if found is not None:
            return Start("resume", *found)
        own = {"member": runner.members[0]}
        log.info("Nothing to resume in %s: starting at the beginning.", runner.work_dir, extra=own)
    elif runner.resume:
        return Start("resume", *checkpoint.given("resume", runner.resume))
    elif runner.strategy.is_main and _holds_another_run(runner):
        raise ConfigError(
            "work_dir",
            str(runner.work_dir),
            "a directory without a run",
            hint="resume=true continues the one there.",
        )
    if runner.load_from is not None:
        return Start(weights.KEY, *checkpoint.given(weights.KEY, runner.load_from.path, weights.read))
    return None


def _holds_another_run(runner: RunState) -> bool:
    (member, *_) = runner.members
    return member.work_dir is not None and member.journal is None and (member.work_dir / journal.FILE).exists()


def capture(runner: RunState, generators: dict[str, Any]) -> dict[str, Any]:
    """The state of a run of one member, as its checkpoint holds it; its tensors are the live ones.

    Args:
        runner: of one member.
        generators: the state of the process's random generators.
    """
    (member,) = runner.members
    state = {
        "version": 1,
        "trainyard": trainyard.__version__,
        "seed": member.seed,
        "epoch": runner.epoch,
        "iter": runner.iter,
        "batches": len(runner.loader("train")),
        "model": runner.model.state_dict(),
        "optimizer": plain.method(runner.optimizer, "state_dict")() | {"type": _name(runner.optimizer)},
        "schedule": {"type": _name(runner.schedule)} | (runner.schedule.state_dict() if runner.schedule else {}),
        "step": runner.step.state_dict(),
        "loop": runner.train_loop.state_dict(),
        "member": member.state_dict(),
        "hooks": runner.dispatch.state_dict(),
        "random": generators,
    }
    return ranks.with_all(state, runner.strategy)


def copy_tensors(value: Any) -> Any:
    """The same nest of dicts, lists and tuples with every tensor copied to the CPU: it no longer changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_tensors(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_tensors(entry) for entry in value)
    return value


def restore(runner: RunState, start: Start | None, *, weights_only: bool = False) -> None:
    """Take up a checkpoint: the whole state to resume, the weights that were evaluated to load.

    Raises:
        ConfigError: the checkpoint is of another architecture or another kind of training.
    """
    if start is None:
        return
    state = start.state
    if not start.resumes or weights_only:
        asked = None if start.resumes else runner.load_from
        found = state.get("eval_model", state["model"]) if start.resumes else state
        told = weights.load(runner.model, found, asked or weights.LoadFrom(start.path), start.key)
        log.info("Loaded the weights of %s: %s.", start.path, told, extra={"member": runner.members[0]})
        return
    state = ranks.of_one(state, runner.strategy)
    weights.load(runner.model, state["model"], weights.LoadFrom(start.path), start.key)
    try:
        _check_equal("number of batches an epoch", state["batches"], len(runner.loader("train")))
        _check_equal("optimiser", state["optimizer"]["type"], _name(runner.optimizer))
        _check_equal("schedule", state["schedule"]["type"], _name(runner.schedule))
        rates = _rates(runner.optimizer)
        saved = optimizer_state(_untyped(state["optimizer"]), runner.optimizer)
        plain.method(runner.optimizer, "load_state_dict")(saved)
        if getattr(runner.schedule, "constant", True) and _rates(runner.optimizer) != rates:
            kept = ", ".join(f"{rate:g}" for rate in _rates(runner.optimizer))
            log.warning("The learning rate goes on as the checkpoint has it, %s: the config's is not read.", kept)
        if runner.schedule is not None:
            runner.schedule.load_state_dict(_untyped(state["schedule"]))
        runner.step.load_state_dict(state["step"])
        runner.train_loop.load_state_dict(state["loop"])
        runner.members[0].load_state_dict(state["member"])
        runner.dispatch.load_state_dict(state["hooks"])
        runner.epoch, runner.iter = state["epoch"], state["iter"]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            start.key, str(start.path), "a checkpoint of this training", hint=f"This one is of another: {error}."
        ) from error
    if runner.work_dir is not None and start.path.resolve().parent != runner.members[0].checkpoints:
        runner.members[0].best = None  # its file lies elsewhere: the best is found anew among the states saved here
    if state["seed"] != runner.seed:
        log.warning("The checkpoint was made under seed %s: the data come in another order now.", state["seed"])
    runner.call("after_load_checkpoint", checkpoint=state)
    if "random" in state:
        random.restore(state["random"])
    place = (start.path, runner.epoch, runner.iter)
    log.info("Resumed %s: epoch %d, iteration %d.", *place, extra={"member": runner.members[0]})


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]


def _name(part: object) -> str | None:
    return None if part is None else getattr(part, "kind", type(part).__name__)


def _untyped(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "type"}


def _check_equal(what: str, saved: object, own: object) -> None:
    if saved != own:
        raise ValueError(f"its {what} is {saved}, here {own}")


def restore_best(runner: RunState, path: Path) -> None:
    """Give the evaluated model (the EMA's, where there is one) the weights that a checkpoint was evaluated with."""
    weights.load(runner.eval_model, weights.read(path), weights.LoadFrom(path))
