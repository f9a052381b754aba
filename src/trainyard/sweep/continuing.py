"""Continuation of a sweep: its command is repeated in the same folder with the same overrides.

The manifest in the sweep's directory names the application that is run: the script or module that started the sweep.
Finished jobs are kept, interrupted jobs resume from their checkpoints, and the others are run, all as recorded in the
manifest: results are bit-identical with the recorded decisions on the same kind of CPU; otherwise, they are equal up to
rounding.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.application import StartedAs
from trainyard.config.saved import saved_values
from trainyard.errors import ConfigError, TrainyardError
from trainyard.foreground import replace_process
from trainyard.quoting import override, shell_override
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.steering import no_sweep
from trainyard.sweep.submitted_head import check_gone


def go_on(directory: Path, application: Path | None = None) -> NoReturn:
    """Repeat the command of a sweep in place of this process.

    Args:
        directory: the directory of the sweep.
        application: the script of the application, if it is not found, for example because it was moved.

    Raises:
        TrainyardError: this is not the directory of a sweep, or its application or the folder in which it was started
            or that of its --config-path no longer exists, or a Slurm job runs it.
    """
    record = directory.resolve() / "multirun.yaml"
    if not record.is_file():
        raise no_sweep(directory, record.name)
    directory = directory.resolve()
    check_gone(directory)
    started = _application(directory, application)
    values = saved_values(record)
    try:
        hydra = OmegaConf.create(values).hydra
        folder, given = Path(hydra.runtime.cwd), arguments(hydra, started)
    except (AttributeError, TypeError, KeyError, ValueError, OmegaConfBaseException) as error:
        raise TrainyardError(
            f"{record} is not the record of a sweep, so its command is unknown. Repeat the command with "
            f"{shell_override('hydra.sweep.dir', directory)}."
        ) from error
    if not folder.is_dir():
        raise TrainyardError(
            f"The sweep was started in {folder}, which does not exist. Restore this folder, because the command of the "
            "sweep runs in it."
        )
    started.check_config_path(
        f"The sweep in {directory}",
        "Restore this folder, or repeat the command of the sweep with another --config-path and "
        f"{shell_override('hydra.sweep.dir', directory)}.",
    )
    command = [sys.executable, *started.command, *given, override("hydra.sweep.dir", directory)]
    replace_process(command, folder)


def arguments(hydra: Any, started: StartedAs) -> list[str]:
    """Return the arguments of a sweep's command, without its directory.

    Args:
        hydra: the node `hydra` of the sweep's multirun.yaml.
        started: how the sweep was started.
    """
    # Hydra keeps its own mode (-m) among the overrides.
    given: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
    own = [entry for entry in given["hydra"] if not entry.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    return ["-m", *started.config_flags, *_config(hydra), *own, *given["task"]]


def _application(directory: Path, given: Path | None) -> StartedAs:
    """Return how the sweep's application is started.

    Raises:
        TrainyardError: the application cannot be found, or the given one differs.
    """
    recorded = Manifest.open(directory).application
    if recorded is not None and recorded.module is not None and not Path(recorded.file).is_file():
        raise TrainyardError(
            f"{directory} contains a sweep of {recorded}, whose file {recorded.file} does not exist. Restore this file."
        )
    if given is not None:
        if not given.is_file():
            raise ConfigError("--app", str(given), "the path of the application's script, which must exist")
        own = StartedAs(str(given.resolve()))
        if recorded is None:
            return own
        recorded.check(own, directory, "Pass the script of this sweep with --app.")
        return recorded if Path(recorded.file).is_file() else replace(recorded, file=own.file)
    if recorded is None:
        raise TrainyardError(
            f"{directory} contains no record of the application that started the sweep. Pass the application's script "
            "with --app."
        )
    if not Path(recorded.file).is_file():
        raise TrainyardError(
            f"{directory} contains a sweep of {recorded}, which does not exist. Pass the new path of this "
            "script with --app."
        )
    return recorded


def _config(hydra: Any) -> list[str]:
    """Return Hydra's flags for the config that the sweep was started with, without --config-path."""
    flags = [] if hydra.job.config_name is None else ["--config-name", str(hydra.job.config_name)]
    folders = [str(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [*flags, *(["--config-dir", folders[0]] if folders else [])]
