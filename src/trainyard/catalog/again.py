"""Repeating a run: from its resolved config, or from its overrides with changes."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from trainyard.application import StartedAs
from trainyard.catalog.find import SWEEP
from trainyard.catalog.lineage import Segment
from trainyard.catalog.stored_run import StoredRun
from trainyard.config.config_files import at
from trainyard.config.saved import saved_values
from trainyard.errors import ConfigError, TrainyardError
from trainyard.quoting import shell_path
from trainyard.redaction import MASK
from trainyard.sweep.records import application_of
from trainyard.track import own

_MODULE = ["-m", "trainyard.train"]
_PLAN = "plan.json"
_PRIMARY = "again"  # the name of a primary config; options of groups have others
CONFIGS = "trainyard-again-"
"""Beginning of the name of the temporary folder with the config of a repeated run."""
# As conf/train.yaml has them; they come from Trainyard's own configs, which its plugin adds to the search path.
_DEFAULTS = [
    "_self_",
    {"override hydra/job_logging": "trainyard"},
    {"override hydra/hydra_logging": "none"},
    {"override hydra/help": "trainyard"},
    {"override hydra/launcher": "local"},
    {"override hydra/sweeper": "grid"},
]
_NAMED = ("model", "data")  # groups whose options are in the first line of a training
# Where a run is kept and tracked, not what it does.
_OWN = {"resume": False, "resume_override": None, "tracker": None}


@dataclass(frozen=True)
class Launch:
    """How a training is started.

    Attributes:
        command: the program and its arguments.
        folder: the current folder.
        environment: the environment variables.
    """

    command: list[str]
    folder: Path
    environment: dict[str, str]


def check_trust(run: StoredRun, place: str, trust: bool) -> None:
    """Check that a run may be repeated, because its config names the code that is executed.

    Args:
        run: the run.
        place: the place at which it was found, for the message.
        trust: whether the user trusts it.

    Raises:
        TrainyardError: its directory is not the user's own.
    """
    if not (trust or own.is_own(run.info, run.directory)):
        raise TrainyardError(
            f"{run.info.name} ({place}) is not recognized as your own run (it may be a copy or a download), and its "
            "config names code that would run. Pass --trust if you trust this run."
        )


def from_config(run: StoredRun, folder: Path, directory: Path, lineage: Sequence[Segment] = ()) -> Launch:
    """Return how to repeat a run exactly: from its resolved config, without tracking.

    Args:
        run: the run.
        folder: an empty folder for the config of the new run.
        directory: the new run's.
        lineage: the segments to train, one after the other; empty for a run that trained alone.

    Raises:
        TrainyardError: its config cannot be read, or contains a credential that was not saved.
    """
    if not run.config:
        raise TrainyardError(
            f"{run.directory} has no readable config.yaml, so the run cannot be repeated. Runs of a Runner in Python "
            "do not write this file: start their program again."
        )
    values = _repeatable(run, run.config)
    threads = run.history.tags.get("threads", "")
    if threads.isdecimal() and isinstance(values.get("env"), dict) and values["env"].get("threads", 0) is None:
        values["env"] = values["env"] | {"threads": int(threads)}  # sums depend on how they are divided
    options = {group: option for group in _NAMED if (option := run.info.params.get(group)) is not None}
    hydra = {
        "job": {"name": "train"},
        "run": {"dir": str(directory.absolute())},
        "runtime": {"choices": _literal(options)},  # for the first line
    }
    whole = {"defaults": _DEFAULTS, **_literal(values), "work_dir": "${hydra:runtime.output_dir}", "hydra": hydra}
    (folder / f"{_PRIMARY}.yaml").write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    launch = _launch(run, _hydra(run), [*_program(_started(run)), "-cp", str(folder), "-cn", _PRIMARY])
    if not lineage:
        return launch
    plan = []
    for segment in lineage:
        config = saved_values(segment.config)
        plan.append(vars(segment) | {"config": _literal(_repeatable(run, config))})
    (folder / _PLAN).write_text(json.dumps({"segments": plan}), encoding="utf-8")
    return replace(launch, environment=launch.environment | {"TRAINYARD_REPLAY": str(folder / _PLAN)})


def _repeatable(run: StoredRun, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config for a run in another directory.

    Raises:
        ConfigError: one of them is a credential that was not saved.
    """
    values = {key: value for key, value in config.items() if key != "work_dir"} | _OWN
    values["name"] = f"{run.info.name} (again)"
    for key, value in _leaves(values):
        if isinstance(value, str) and MASK in value:
            hint = "Use `trainyard rerun`, which composes the config again, with its credentials."
            raise ConfigError(key, value, "the credential, which is not stored", hint=hint)
    return values


def with_changes(run: StoredRun, changes: Sequence[str], multirun: bool = False) -> Launch:
    """Return how to repeat the command of a run with other overrides and the current configs.

    An override replaces overrides of the same key, and an option of a group replaces overrides of keys in this group.
    The name of the run is not reused.

    Args:
        run: the run.
        changes: overrides.
        multirun: a sweep over the changes.

    Raises:
        TrainyardError: the run's overrides cannot be read, the folder of its --config-path no longer exists, or the run
            was made by `reproduce`.
    """
    _check_not_reproduced(run)
    try:
        text = (run.directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
        given = yaml.safe_load(text) or []
        if not isinstance(given, list) or not all(isinstance(line, str) for line in given):
            raise ValueError("the file does not contain a list of overrides")
    except FileNotFoundError as error:
        raise TrainyardError(
            f"{run.directory} has no .hydra/overrides.yaml, so the command of the run is unknown. Runs of a Runner in "
            "Python, and runs with hydra.output_subdir=null, do not write this file: start their program again."
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise TrainyardError(
            f"{run.directory}: the overrides of this run (.hydra/overrides.yaml) cannot be read: {said}."
        ) from error
    hydra = _hydra(run)
    new = {_key(line) for line in changes}
    choices = at(hydra, "runtime.choices")
    groups = {str(group) for group in choices} if isinstance(choices, Mapping) else set()
    below = tuple(f"{key.replace('/', '.')}." for key in new if key in groups)
    kept = [line for line in given if _key(line) not in {*new, "resume", "name"} and not _key(line).startswith(below)]
    started = _started(run)
    program = _program(started)
    main = _sources(hydra, "main")
    if started is not None and started.config_path is not None:
        then = "Restore this folder, or start the program of this run with another --config-path."
        started.check_config_path(f"The run in {run.directory}", then)
        flags = started.config_flags
    else:
        flags = ["-cp", main[0]] if program == _MODULE and main and Path(main[0]).is_dir() else []
    name = at(hydra, "job.config_name")
    flags += ["-cn", name] if isinstance(name, str) else []
    flags += [word for folder in _sources(hydra, "command-line")[:1] for word in ("--config-dir", folder)]
    flags += ["-m"] if multirun else []
    lines = at(hydra, "overrides.hydra")
    path = [line for line in map(str, lines if isinstance(lines, list) else ()) if _key(line) == "hydra.searchpath"]
    return _launch(run, hydra, [*program, *flags, *path, *kept, *changes])


def _check_not_reproduced(run: StoredRun) -> None:
    """Check that a run was not made by `reproduce`: it has neither overrides nor config files of its own.

    Raises:
        TrainyardError: it was.
    """
    started = _started(run)
    if started is not None and Path(started.config_path or "").name.startswith(CONFIGS):
        program = "trainyard train" if started.command == _MODULE else shlex.join(["python", *started.command])
        raise TrainyardError(
            f"{run.info.name} ({run.directory}) was made by `trainyard reproduce`, from the config of another run, and "
            "has no overrides of its own. Rerun the other run, or train with the resolved config of this one: "
            f"{program} -cp {shell_path(run.directory.absolute())} -cn config KEY=VALUE"
        )


def new_directory() -> Path:
    """Return a directory for a run, as Hydra names them."""
    now = time.time()
    return Path("outputs", time.strftime("%Y-%m-%d", time.localtime(now)), _clock(now)).absolute()


def _clock(now: float) -> str:
    return f"{time.strftime('%H-%M-%S', time.localtime(now))}-{int(now % 1 * 1e6):06d}"


def _launch(run: StoredRun, hydra: Mapping[str, Any], arguments: list[str]) -> Launch:
    """Return the launch of Python with these arguments, in the folder from which the run was started, if it exists."""
    then = Path(str(at(hydra, "runtime.cwd") or "."))
    folders = [folder for folder in run.info.python_path if Path(folder).is_dir()]
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*([before] if before else []), *folders])
    environment = dict(os.environ) | ({"PYTHONPATH": path} if path else {})
    return Launch([sys.executable, *arguments], then if then.is_dir() else Path.cwd(), environment)


def _started(run: StoredRun) -> StartedAs | None:
    """Return how the run, or the sweep to which it belongs, was started; None if this is not recorded."""
    if run.info.program:
        first, *rest = run.info.program
        return StartedAs(first, rest[0] if first == "-m" and rest else None, run.info.config_path)
    manifests = [parent / SWEEP for parent in run.directory.absolute().parents[:3]]
    return next((found for each in manifests if (found := application_of(each)) is not None), None)


def _program(started: StartedAs | None) -> list[str]:
    """Return the arguments of Python that start a program, or Trainyard's program if it does not exist."""
    there = started is not None and (started.module is not None or Path(started.file).is_file())
    return started.command if started is not None and there else list(_MODULE)


def _hydra(run: StoredRun) -> dict[str, Any]:
    """Return Hydra's own config of a run; empty if it cannot be read."""
    try:
        node = yaml.safe_load((run.directory / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))["hydra"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return node if isinstance(node, dict) else {}


def _sources(hydra: Mapping[str, Any], provider: str) -> list[str]:
    """Return the folders of configs from which a run was composed: of its `main` program, or of the `command-line`."""
    sources = at(hydra, "runtime.config_sources")
    return [
        str(each["path"])
        for each in (sources if isinstance(sources, list) else ())
        if at(each, "provider") == provider and at(each, "schema") == "file" and "path" in each
    ]


def _key(line: str) -> str:
    return line.lstrip("+~").partition("=")[0].partition("@")[0]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, entry in entries:
            yield from _leaves(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _literal(value: Any) -> Any:
    """Return values with escaped interpolations, so that resolved texts are not resolved again."""
    if isinstance(value, Mapping):
        return {key: _literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_literal(entry) for entry in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
