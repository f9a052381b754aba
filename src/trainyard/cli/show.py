"""`trainyard show`: one run."""

from __future__ import annotations

import click

from trainyard.catalog import Point, StoredRun, resolve
from trainyard.catalog.garbage import size_of
from trainyard.cli.completion import RUN
from trainyard.cli.output import as_json, curve, date, number, print_json, print_table, progress, size
from trainyard.sweep.report.rows import duration


@click.command("show")
@click.argument("run", type=RUN)
@as_json
def command(run: str, json_: bool) -> None:
    """Show a RUN: its state, metrics, curves, overrides, code, machine and checkpoints."""
    found = resolve(run)
    if json_:
        print_json(
            found.facts
            | {
                "message": found.history.message,
                "objective": found.objective,
                "metrics": found.metrics,
                "config": found.config,
                "facts": found.info.facts,
                "checkpoints": [str(path) for path in found.checkpoints],
            }
        )
        return
    print_table(("", ""), [(name, text) for name, text in _lines(found) if text])
    if found.metrics:
        click.echo()
        print_table(("metric", "value", "curve"), _metrics(found), right=("value",))


def _lines(run: StoredRun) -> list[tuple[str, str]]:
    facts, best = run.info.facts, run.best
    commit = facts.get("git.commit", "")
    changed = " with uncommitted changes" if facts.get("git.dirty") == "true" else ""
    machine = ", ".join(facts[name] for name in ("host.name", "host.cpu", "cuda.devices") if name in facts)
    versions = ", ".join(f"{name} {facts[key]}" for name in ("python", "torch") if (key := f"version.{name}") in facts)
    message = f" ({run.history.message})" if run.history.message else ""
    return [
        ("run", run.info.name),
        ("id", run.info.id),
        ("directory", str(run.directory)),
        ("state", run.state + message),
        ("progress", progress(run)),
        ("started", f"{date(run.info.start_time)}, ran for {duration(run.history.seconds)}"),
        ("best", "" if best is None else f"{best.name} {number(best.point.value)}, at {_at(best.point)}"),
        ("overrides", run.info.tags.get("overrides", "")),
        ("code", f"commit {commit[:12]}{changed}" if commit else ""),
        ("machine", machine),
        ("versions", versions),
        ("tracked", run.info.uri or "nowhere"),
        ("checkpoints", ", ".join(f"{path.name} ({size(size_of(path))})" for path in run.checkpoints)),
    ]


def _at(point: Point) -> str:
    return f"iteration {point.step}" if point.epoch is None else f"epoch {point.epoch} (iteration {point.step})"


def _metrics(run: StoredRun) -> list[tuple[str, str, str]]:
    series = run.history.series
    return [
        (name, number(value), curve([point.value for point in series[name]]) if len(series[name]) > 1 else "")
        for name, value in run.metrics.items()
    ]
