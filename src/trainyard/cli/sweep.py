"""`trainyard sweep`: list, watch, continue, steer and report sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainyard.checks import existing_folder
from trainyard.cli.output import as_json, date, number, print_json, print_table
from trainyard.cli.sweep_report import export, print_ranking, record, report
from trainyard.errors import ConfigError
from trainyard.quoting import named

if TYPE_CHECKING:
    from trainyard.sweep.steering import Action

_DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
_JOB = click.argument("job", metavar="JOB")
_WAIT = click.option(
    "--wait",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds to wait for the answer of the sweep.",
)


@click.group("sweep")
def command() -> None:
    """List, watch, continue, steer, report and export sweeps.

    DIR is the directory of a sweep, and JOB the number of a job.
    """


@command.command("ls")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(path_type=Path))
@as_json
def ls(folders: Sequence[Path], json_: bool) -> None:
    """List the sweeps below FOLDERs, sorted by start time.

    The default FOLDERs are outputs and multirun, or the current folder if neither exists.
    """
    from trainyard.catalog.find import default_folders
    from trainyard.catalog.stored_sweep import find_sweeps

    for folder in folders:
        existing_folder("FOLDER", folder)
    searched = folders or default_folders()
    sweeps = find_sweeps(searched)
    records = [record(sweep) for sweep in sweeps]
    if json_:
        print_json(records)
        return
    if not records:
        click.echo(f"No sweeps found in {named(searched)}.")
        return
    rows = [
        [
            str(each["directory"]),
            "running" if each["running"] else "-",
            sweep.counts(),
            str(each["objective"] or "-"),
            number(each["best"]),
            "-" if each["best_job"] is None else f"#{each['best_job']}",
            "-" if sweep.started is None else date(sweep.started),
        ]
        for sweep, each in zip(sweeps, records, strict=True)
    ]
    print_table(["directory", "state", "jobs", "objective", "best", "job", "started"], rows, right=("best", "job"))


@command.command("attach")
@_DIRECTORY
def attach(directory: Path) -> None:
    """Watch a running sweep until it ends: a live table; in a pipe or a file, one line per change.

    This command does not affect the sweep; Ctrl-C ends only this command. At the end, the ranking is printed. For a
    sweep that was started with hydra.launcher.detach=true, the output of the sweep's process is shown instead.
    """
    from trainyard.catalog.stored_sweep import StoredSweep
    from trainyard.cli.watching import watch
    from trainyard.sweep import detached
    from trainyard.sweep.submitted_head import number_of

    directory = directory.absolute()
    if number_of(directory) is not None:
        try:
            detached.attach(directory)
        except KeyboardInterrupt:
            click.echo("\nThe sweep continues.")
        return
    sweep = StoredSweep.read(directory)
    if watch(sweep):
        print_ranking(sweep)


@command.command("resume")
@_DIRECTORY
@click.argument("job", metavar="[JOB]", required=False)
@click.option(
    "--app",
    type=click.Path(path_type=Path),
    metavar="SCRIPT",
    help="New path of the sweep's script, if the script was moved.",
)
@_WAIT
def resume(directory: Path, job: str | None, app: Path | None, wait: float) -> None:
    """Continue a sweep that ended early; with a JOB, resume this paused job.

    Finished jobs are kept, interrupted jobs continue from their checkpoints, and failed jobs are retried.
    """
    if job is not None:
        if app is not None:
            raise ConfigError(
                "--app", str(app), "no --app together with a JOB, because --app applies to the entire sweep"
            )
        _steer(directory, "resume", job, (), wait)
        return
    from trainyard.sweep.continuing import go_on

    go_on(directory, app)


@command.command("pause")
@_DIRECTORY
@_JOB
@_WAIT
def pause(directory: Path, job: str, wait: float) -> None:
    """Pause a JOB: it keeps its checkpoint and frees its slot. `resume DIR JOB` resumes it."""
    _steer(directory, "pause", job, (), wait)


@command.command("stop")
@_DIRECTORY
@_JOB
@_WAIT
def stop(directory: Path, job: str, wait: float) -> None:
    """Stop a JOB permanently.

    To end an entire sweep, which can then be continued, use Ctrl-C in its terminal, or SIGTERM.
    """
    _steer(directory, "stop", job, (), wait)


@command.command("cancel")
@_DIRECTORY
def cancel(directory: Path) -> None:
    """End a sweep that was started with hydra.launcher.detach=true: its jobs save a checkpoint first.

    To continue it, use `trainyard sweep resume DIR`, or the same command with hydra.sweep.dir=DIR.
    """
    from trainyard.sweep import detached

    detached.cancel(directory.absolute())


@command.command("clone")
@_DIRECTORY
@_JOB
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE...", type=click.UNPROCESSED)
@_WAIT
def clone(directory: Path, job: str, overrides: Sequence[str], wait: float) -> None:
    """Add a job that continues from the newest checkpoint of a JOB, with other values."""
    _steer(directory, "clone", job, overrides, wait)


command.add_command(report)
command.add_command(export)


def _steer(directory: Path, action: Action, job: str, overrides: Sequence[str], wait: float) -> None:
    from trainyard.sweep.steering_cli import steer

    click.echo(steer(directory, action, job, overrides, wait))
