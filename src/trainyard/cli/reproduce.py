"""`trainyard reproduce`: repeat a run and compare it with the original."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import click

from trainyard.catalog import StoredRun, resolve
from trainyard.catalog.again import CONFIGS, Launch, check_trust, from_config, new_directory
from trainyard.catalog.lineage import lineage_of
from trainyard.cli.completion import RUN
from trainyard.cli.output import SHORT, as_json, number, print_json
from trainyard.cli.store import store
from trainyard.errors import TrainyardError, counted
from trainyard.foreground import run_to_end
from trainyard.reproduction import Reproduction, check
from trainyard.track.run_info import RunInfo

DIFFERS = 3  # the exit status
_SHOWN = 10
_IDS = 32  # characters of an id of MLflow's


@click.command("reproduce")
@click.argument("run", type=RUN)
@click.option(
    "--uri",
    metavar="URI",
    help="MLflow store of a RUN that is not on this machine (default: MLFLOW_TRACKING_URI, otherwise mlflow.db).",
)
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of the new run (default: a new directory in outputs).",
)
@click.option(
    "--trust", is_flag=True, help="Allow a RUN that is not recognized as your own. Its config can run any code."
)
@as_json
def command(run: str, uri: str | None, directory: Path | None, trust: bool, json_: bool) -> None:
    """Repeat a RUN from its resolved config, without tracking, and compare curves and weights.

    A job of a sweep is trained again in its lane of a stack. For a member of a population, its ancestors are trained
    first.

    RUN can also be an MLflow run ID. The exit status is 0 if all bits are identical, and 3 if bits differ. If bits
    differ, the first differences are printed, together with the differences in code, versions, data and device.
    """
    if directory is not None and (directory / "run.json").exists():
        raise TrainyardError(f"--to: {directory} already contains a run.")
    directory = directory or new_directory()
    with ExitStack() as folders:
        then = stored(run, uri, trust, folders)
        folder = folders.enter_context(tempfile.TemporaryDirectory(prefix=CONFIGS))
        lineage = lineage_of(then)
        start(from_config(then, Path(folder), directory, lineage), quiet=json_)
        found = check(then, StoredRun(directory, RunInfo.read(directory)), lineage)
    if json_:
        print_json({"identical": found.identical, "directory": str(directory), **asdict(found)})
    else:
        click.echo(f"\n{then.info.name} ({then.info.id[:SHORT]}), trained again in {_relative(directory)}:")
        for line in _lines(found):
            click.echo(line)
    if not found.identical:
        sys.exit(DIFFERS)


def stored(run: str, uri: str | None, trust: bool, folders: ExitStack) -> StoredRun:
    """Return a run by its directory, ID or name; if there is none, download it from MLflow into a temporary folder.

    Args:
        run: the run, as named by the user.
        uri: the store; None for that of the environment.
        trust: accept a run from elsewhere.
        folders: the exit stack that holds the temporary folder.

    Raises:
        TrainyardError: the run is not found, or is from elsewhere.
    """
    try:
        found = resolve(run) if uri is None else None
    except TrainyardError:
        if len(run) != _IDS or not run.isalnum():
            raise
        found = None
    if found is not None:
        check_trust(found, str(found.directory), trust)
        return found
    from trainyard.track.shipper.__main__ import configure

    configure()
    from trainyard.track.shipper.fetch import fetch  # imports mlflow

    folder = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="trainyard-run-")))
    fetched = StoredRun(folder, fetch(run, store(uri), folder))
    check_trust(fetched, f"in {fetched.info.uri}", trust)
    return fetched


def start(launch: Launch, *, quiet: bool = False) -> None:
    """Run a training to its end; with `quiet`, its output is sent to standard error.

    If the training fails, this process ends with the status of the training.
    """
    output = sys.stderr if quiet else None
    status = run_to_end(launch.command, cwd=launch.folder, env=launch.environment, stdout=output)
    if status:
        sys.exit(status)


def _lines(found: Reproduction) -> list[str]:
    lines = []
    what = f"{counted(found.metrics, 'metric')}, {counted(found.points, 'value')}"
    if found.curves:
        lines.append(f"curves: different in {len(found.curves)} of {counted(found.metrics, 'metric')}")
        lines += [f"  {name}: {where}" for name, where in found.curves.items()]
    else:
        lines.append(f"curves: identical ({what})")
    if found.weights is None:
        lines.append("weights: not compared, because the runs have no checkpoint of the same name and iteration")
    elif found.weights:
        lines.append(f"weights: different in {counted(len(found.weights), 'place')}")
        lines += [f"  {name}" for name in found.weights[:_SHOWN]]
        lines += [f"  and {len(found.weights) - _SHOWN} more"] if len(found.weights) > _SHOWN else []
    else:
        lines.append("weights: identical")
    for title, rows in (("data", found.data), ("code", found.code), ("environment", found.environment)):
        lines += [f"{title}: {name} was {number(then)}, is {number(now)}" for name, (then, now) in rows.items()]
    if found.files:
        lines.append(f"changed files: {', '.join(found.files)}")
    lines += [f"note: {note}" for note in found.notes]
    return lines


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
