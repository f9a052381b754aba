"""Commands that steer a sweep from another terminal: implementation of `trainyard sweep stop`, `pause`, `resume` and
`clone`.

Without a process that runs the sweep, the command waits until the sweep is continued.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from trainyard.application import continuation
from trainyard.config.saved import saved_values
from trainyard.errors import ConfigError, TrainyardError, first_line
from trainyard.quoting import shell_path
from trainyard.redaction import check_overrides
from trainyard.sweep.events import FINAL, FIRST_CLONE
from trainyard.sweep.manifest import FILE
from trainyard.sweep.plan import spans
from trainyard.sweep.records import is_record
from trainyard.sweep.steering import (
    Acknowledgement,
    Action,
    Command,
    CommandFolder,
    acknowledged,
    in_words,
    is_run,
    no_sweep,
)
from trainyard.sweep.submitted_head import queued

HYDRA = ".hydra"
LAST = "checkpoints/last.json"
_WORK_DIR = "${hydra:runtime.output_dir}"  # as in conf/train.yaml: the directory of the job
_LENGTHS = ("loop.max_epochs", "loop.max_iters")  # of a training; other applications may have other keys
_EVERY = 0.05  # seconds between two looks at the manifest


def steer(directory: Path, action: Action, job: str, overrides: Sequence[str] = (), wait: float = 10.0) -> str:
    """Give a command to a sweep and return its result, for users.

    Args:
        directory: the sweep's directory.
        action: the action.
        job: the number of the job, `3` or `#3`.
        overrides: the changes of a clone.
        wait: seconds to wait for the answer of the process that runs the sweep, if there is one.

    Raises:
        TrainyardError: there is no such sweep or job, the state of the job does not allow the action, an override is
            invalid, or the process that runs the sweep has refused the command.
    """
    state = SweepState.read(directory)
    folder = CommandFolder(directory)
    num = _number(job, state)
    waiting = [command for command in folder.pending(state.answers) if command.job == num]
    if not (waiting and waiting[-1].is_same(action, num, overrides)):  # else it is given again
        _check(action, num, state, waiting, directory)
        _check_overrides(action, num, directory, state, overrides)
    command, _ = folder.give(action, num, overrides, state.answers)
    head = None if is_run(directory) else queued(directory)  # another machine may hold the lock without effect here
    if head is not None and head.state == "PENDING":
        return (
            f"Slurm job {head.place}, which will run this sweep, is pending. The command will be executed when this "
            "Slurm job starts."
        )
    if head is None and not is_run(directory):
        state.read_on()
        if command.id not in state.answers:
            how = continuation(directory.absolute(), recorded=state.has_file)
            return (
                "No process is running this sweep. The command will be executed when the sweep continues. To continue "
                f"the sweep, {how}."
            )
    answer = _answer(command, state, wait)
    if answer is None:
        return f"Sent, but not answered yet: {command}. The process that runs the sweep will execute or refuse it."
    if not answer.accepted:
        end = "" if answer.told.endswith((".", "?")) else "."
        raise TrainyardError(f"{command} was refused: {answer.told}{end}")
    return f"Accepted: {command}{f': {answer.told}' if answer.told else ''}."


@dataclass
class SweepState:
    """State of a sweep according to its manifest, which is read while another process writes it.

    Attributes:
        states: the state of each job, by number.
        subdirs: the directory of each job below the sweep's.
        held: the jobs that a user has paused; others are paused at a rung.
        answers: the acknowledgements of commands, by id.
        has_file: whether the application of the sweep has a file, which `trainyard sweep resume` runs.
    """

    path: Path
    states: dict[int, str] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    subdirs: dict[int, str | None] = field(default_factory=dict)
    answers: dict[str, Acknowledgement] = field(default_factory=dict)
    has_file: bool = False
    _read_to: int = 0

    @classmethod
    def read(cls, directory: Path) -> SweepState:
        """Read the manifest in a directory.

        Raises:
            ConfigError: the directory has no manifest.
        """
        state = cls(directory / FILE)
        if not state.path.is_file():
            raise no_sweep(directory)
        state.read_on()
        return state

    def read_on(self) -> None:
        """Read the new records; an incomplete last line is left for the next time."""
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                if is_record(record):
                    self._take(record)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def _take(self, record: dict[str, Any]) -> None:
        answer = acknowledged(record)
        if answer is not None:
            self.answers[answer[0]] = answer[1]
        elif record["kind"] == "application":
            self.has_file = True
        elif record["kind"] == "job":
            self.states.setdefault(record["num"], "waiting")
            self.subdirs[record["num"]] = record.get("subdir")
        elif record["kind"] == "state":
            self.states[record["num"]] = record["state"]
            (self.held.add if record.get("by_hand") else self.held.discard)(record["num"])
        elif record["kind"] == "queued":
            for unit in record["units"]:
                for num in unit if isinstance(unit, list) else unit["nums"]:
                    self.states[num] = "waiting"
                    self.held.discard(num)


def _number(job: str, state: SweepState) -> int:
    """Return the number of a job.

    Raises:
        ConfigError: there is no such job.
    """
    text = job.removeprefix("#")
    if not text.isdecimal() or int(text) not in state.states:
        nums = sorted(state.states)
        groups = [num for num in nums if num < FIRST_CLONE], [num for num in nums if num >= FIRST_CLONE]
        jobs = ", ".join(map(spans, filter(None, groups)))
        accepted = f"a job of this sweep: {jobs}" if jobs else "a job, but this sweep has no jobs yet"
        raise ConfigError("JOB", job, f"the number of {accepted}")
    return int(text)


def _check(action: Action, num: int, state: SweepState, waiting: Sequence[Command], directory: Path) -> None:
    """Check that the state of a job after pending commands allows an action.

    Raises:
        ConfigError: it does not.
    """
    if action == "clone":
        return
    then = {"stop": "stopped", "pause": "paused", "resume": "waiting"}
    runs = is_run(directory)  # else no job runs, whatever a killed process has recorded
    states = {each: "waiting" if its == "running" and not runs else its for each, its in state.states.items()}
    pending = next((command.action for command in reversed(waiting) if command.action in then), None)
    now = states[num] if pending is None else then[pending]
    how = in_words(now)
    if pending is not None and now != states[num]:
        how = f"will be {'resumed' if pending == 'resume' else now} by an earlier command"
    if now in FINAL:
        others = sorted(each for each, its in states.items() if its not in FINAL and each != num)
        hint = f"Not finished: {spans(others)}." if others else "All other jobs are finished."
        raise ConfigError("JOB", num, f"a job that is not finished; #{num} {how}", hint=hint)
    if action == "pause" and now == "paused" and (pending is not None or num in state.held):
        hint = f"`trainyard sweep resume {shell_path(directory)} {num}` resumes this job."
        raise ConfigError("JOB", num, f"a job that is not paused; #{num} {how}", hint=hint)
    if action == "resume" and now != "paused":
        paused = sorted(each for each, its in states.items() if its == "paused" and each != num)
        hint = f"Paused: {spans(paused)}." if paused else "None of the other jobs is paused."
        raise ConfigError("JOB", num, f"a job that is paused; #{num} {how}", hint=hint)


def _check_overrides(action: Action, num: int, directory: Path, state: SweepState, overrides: Sequence[str]) -> None:
    """Check the overrides of a clone against the config of the job, which must have started.

    Raises:
        ConfigError: there are no overrides, or there are overrides for another action; an override is invalid; or the
            job has not started, or has ended without a checkpoint.
    """
    if action != "clone":
        if overrides:
            raise ConfigError("KEY=VALUE", " ".join(overrides), f"no overrides, because {action} changes no values")
        return
    if not overrides:
        raise ConfigError("KEY=VALUE", "", "at least one override, because a clone is a job with other values")
    check_overrides(list(overrides))
    folder = directory / (state.subdirs[num] or str(num)) / HYDRA
    if not folder.is_dir():
        if state.states[num] != "waiting":  # it has started without this folder (`hydra.output_subdir`)
            return
        raise ConfigError("JOB", num, f"a job that has started; #{num} has no checkpoint to start from")
    values = saved_values(folder / "config.yaml")
    is_elsewhere = values.get("work_dir") not in (None, _WORK_DIR)
    has_checkpoint = is_elsewhere or (folder.parent / LAST).exists()
    if state.states[num] in FINAL and not has_checkpoint and not is_run(directory):
        # No process would answer: a finished sweep whose application cannot resume starts over, without its commands.
        raise ConfigError("JOB", num, f"a job with a checkpoint; #{num} has no checkpoint to start from")
    config, hydra = (OmegaConf.create(each) for each in (values, saved_values(folder / "hydra.yaml")))
    groups = [str(group) for group in OmegaConf.select(hydra, "hydra.runtime.choices", default={})]
    for line in overrides:
        _check_override(line, config, groups)
    if state.states[num] == "done":
        _check_longer(num, overrides, config, groups)


def _check_longer(num: int, overrides: Sequence[str], config: Any, groups: Sequence[str]) -> None:
    """Check that the clone of a finished training is longer.

    Raises:
        ConfigError: the clone would have nothing to train.
    """
    lengths = {key: value for key in _LENGTHS if isinstance(value := OmegaConf.select(config, key), int)}
    if not lengths:
        return
    parsed = [OverridesParser.create().parse_override(line) for line in overrides]
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if key in groups or key == "loop" or (key in _LENGTHS and not _is_at_most(value, lengths.get(key))):
            return
    key, length = next(iter(lengths.items()))
    raise ConfigError(
        "KEY=VALUE",
        " ".join(overrides),
        f"overrides that increase {key}, because #{num} has finished, and its clone would have nothing to train",
        hint=f"Add {key}=… with a value above {length}.",
    )


def _is_at_most(value: Any, bound: int | None) -> bool:
    return bound is not None and isinstance(value, int | float) and value <= bound


def _check_override(line: str, config: Any, groups: Sequence[str]) -> None:
    try:
        override = OverridesParser.create().parse_override(line)
    except HydraException as error:
        hint = f"{first_line(error)}."
        raise ConfigError("KEY=VALUE", line, "an override, such as optim.lr=0.1", hint=hint) from error
    key = override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(key, line.partition("=")[2], "one value, because a clone is one job")
    if key.partition(".")[0] == "hydra" or key.startswith("hydra/"):
        accepted = "an override of the job, because hydra keys apply to the entire sweep"
        raise ConfigError("KEY=VALUE", line, accepted)
    if override.is_add() or override.is_force_add() or key in groups:
        return
    node, before = config, ""
    for name in key.split("."):
        if isinstance(node, ListConfig) and not node._is_none():
            if not (name.isdecimal() and int(name) < len(node)):
                found = f": {'0' if len(node) == 1 else f'0 to {len(node) - 1}'}" if len(node) else ", which is empty"
                raise ConfigError(key, f"{before}{name}", f"an index of {before[:-1]}{found}")
            node, before = node._get_node(int(name)), f"{before}{name}."
            continue
        if not isinstance(node, DictConfig) or name not in node.keys():  # noqa: SIM118, `in node` resolves
            options = [f"{before}{each!s}" for each in node.keys()] if isinstance(node, DictConfig) else []  # noqa: SIM118
            where = f"a key of {before[:-1]}" if before else "a group or key of this job's config"
            hint = f"The config has no {key} to remove." if override.is_delete() else f"To add a new key, use +{key}=…"
            if not isinstance(node, DictConfig):
                raise ConfigError(key, f"{before}{name}", f"a key of this job's config; {before[:-1]} has no keys")
            accepted = f"{where}: {', '.join(options)}" if options else f"{where}, which has no keys"
            raise ConfigError(key, f"{before}{name}", accepted, options=options, hint=hint)
        node, before = node._get_node(name), f"{before}{name}."


def _answer(command: Command, state: SweepState, wait: float) -> Acknowledgement | None:
    """Wait for the answer to a command; return None if there is none in time."""
    until = time.monotonic() + wait
    while command.id not in state.answers and time.monotonic() < until:
        time.sleep(_EVERY)
        state.read_on()
    return state.answers.get(command.id)
