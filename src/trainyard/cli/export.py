"""`trainyard export`: export the model of a run."""

from __future__ import annotations

from pathlib import Path

import click

from trainyard.catalog import StoredRun, resolve
from trainyard.cli.completion import RUN
from trainyard.cli.output import date, number
from trainyard.errors import ConfigError, TrainyardError, counted

BEST = "best.pt"


@click.command("export")
@click.argument("run", type=RUN)
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Output folder; must be empty or new.",
)
@click.option(
    "--checkpoint",
    "name",
    metavar="NAME",
    help="Name of a checkpoint in checkpoints/ (default: best.pt if it exists, otherwise the newest).",
)
def command(run: str, folder: Path, name: str | None) -> None:
    """Write the model of a RUN to DIR: model.safetensors, config.yaml, and a model card (README.md).

    `trainyard.load(DIR, trust=True)` loads the model for predictions; load_from=DIR/model.safetensors starts training
    from its weights.
    """
    found = resolve(run)
    names = [path.name for path in found.checkpoints]
    if not names:
        raise TrainyardError(f"{found.directory} has no checkpoints, so there is no model to export.")
    if name is not None and name not in names:
        raise ConfigError("--checkpoint", name, f"one of {', '.join(names)}", options=names)
    chosen = name or (BEST if BEST in names else max(found.checkpoints, key=lambda path: path.stat().st_mtime_ns).name)
    file = found.directory / "checkpoints" / chosen
    if not found.config:
        raise TrainyardError(
            f"{found.directory} has no readable config.yaml, so the model cannot be built. Runs of a Runner in Python "
            f"do not write this file; to use their weights, pass load_from={str(file)!r} to the Runner."
        )
    from trainyard.run.export import export  # imports torch

    for written in export(found.directory, file, folder, card(found, chosen)):
        click.echo(written)


def card(run: StoredRun, checkpoint: str) -> str:
    """Return the model card of a run: its data, its results, and how to use it."""
    facts, settings = run.info.facts, run.settings
    rows = [
        ("model", settings.get("model", settings.get("model._target_", ""))),
        ("data", settings.get("data", settings.get("data._target_", ""))),
        ("seed", settings.get("seed")),
        ("trained", f"{date(run.info.start_time)}, {counted(run.step, 'iteration')}"),
        ("checkpoint", checkpoint),
        ("overrides", f"`{run.info.tags['overrides']}`" if run.info.tags.get("overrides") else ""),
        ("commit", facts.get("git.commit", "")),
        ("torch", facts.get("version.torch", "")),
        ("trainyard", facts.get("version.trainyard", "")),
        ("run", run.info.id),
    ]
    best = run.best
    point = (
        ""
        if best is None or best.name.startswith("train/")  # the table has no metrics of the training
        else f" The metrics of `{best.name.partition('/')[0]}` were measured at iteration {best.point.step}."
    )
    lines = [
        f"# {run.info.name}",
        "",
        f"Trained with Trainyard.{point}",
        "",
        *_table(("", ""), [(name, str(value)) for name, value in rows if value not in (None, "")]),
        "",
        *_table(
            ("metric", "value"), [(name, number(value)) for name, value in run.metrics.items() if name[:6] != "train/"]
        ),
        "",
        "`config.yaml` is the config of the training run. It names the code that builds the model, and `trust=True` "
        "allows this code to run. To predict:",
        "",
        "```python",
        "import trainyard",
        "",
        'predictions = trainyard.load("FOLDER", trust=True).predict(inputs)',
        "```",
        "",
        "To start training from these weights: `load_from=FOLDER/model.safetensors`.",
    ]
    return "\n".join([*lines, ""])


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    return [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in [head, ("---", "---"), *rows]]
