"""Page of benchmark results, made from the figures."""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from environment import ROOT, peers
from measure import Comparison, Table

PACKAGES = ("torch", "hydra-core", "mlflow", "numpy")
SOON = "Not measured: "
WHEN = ("date", "commit", "changed", "rounds")
"""Keys of a case that was measured at another time than the others."""
SAME = ("machine", "versions", "threads", "device", "quick")
"""Keys that figures on one page have in common."""
TITLES = {
    "compiled": "Compiled models",
    "ddp": "Several devices",
    "growth_of_runs": "Growth: runs in MLflow",
    "growth_of_state": "Growth: size of a checkpoint",
    "growth_of_sweeps": "Growth: jobs of a sweep",
    "growth_of_validation": "Growth: samples of a validation",
    "search": "Searches in simulated time",
    "trial": "Probe",
}
"""Titles of the cases of several tables that are not the name of the case."""


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return when, where, with what and how the figures were measured."""
    packages = (*PACKAGES, *(line.partition("=")[0] for line in peers()))
    flags = [flag for flag in ("quick", "full", "here") if getattr(options, flag)]
    arguments = [f"--rounds {options.rounds}", *(f"--{flag}" for flag in flags)]
    if options.keep:
        arguments.insert(0, f"--keep {options.keep.name}")
    if options.some:
        arguments.insert(0, f"--only {','.join(options.only)}")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "src", "conf", "scripts/bench")),
        "command": f"python scripts/bench/run.py {' '.join(arguments)}",
        "rounds": options.rounds,
        "quick": options.quick,
        "threads": options.threads,
        "device": options.device,
        "machine": machine(options.device),
        "versions": {"Python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def kept(file: Path, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cases of an older file of figures that was made under the same conditions."""
    before = json.loads(file.read_text())
    for key in SAME:
        if before[key] != figures[key]:
            sys.exit(f"--keep {file}: {key} is {before[key]} in this file, but {figures[key]} now. Both must be equal.")
    when = {key: before[key] for key in WHEN}
    return {name: {"measured": when, **case, "about": about(name)} for name, case in before["cases"].items()}


def about(name: str) -> str:
    """Return the description of a case, which may have been reworded since the case was measured."""
    file = Path(__file__).parent / "cases" / f"{name}.py"
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")), clean=False) or ""


def machine(device: str) -> dict[str, str | int]:
    """Return the processor, the cores available to this process, and the memory."""
    fields = dict(_pairs(Path("/proc/cpuinfo"))) if Path("/proc/cpuinfo").exists() else {}
    found: dict[str, str | int] = {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
    }
    if device != "cpu":
        import torch

        found["device"] = torch.cuda.get_device_name(device)
    return found


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the whole page."""
    return "\n".join(_lines(figures))


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    here = figures["machine"]
    device, on = (f", {here['device']}", f" --device {figures['device']}") if "device" in here else ("", "")
    yield "# Benchmarks"
    yield ""
    yield "Trainyard compared with plain PyTorch and with other tools on one machine. Lower is better in all tables."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| date | {figures['date']} |"
    yield f"| commit | {_commit(figures)} |"
    yield f"| machine | {here['cpu']}, {here['cores']} cores, {here['memory_gb']} GB, {here['system']}{device} |"
    yield f"| threads | {figures['threads']} for CPU kernels, in all programs |"
    yield f"| versions | {', '.join(f'{name} {version}' for name, version in figures['versions'].items())} |"
    yield f"| rounds | {figures['rounds']} |"
    if figures["quick"]:
        yield "| sizes | the smallest: a trial of the benchmarks, not a measurement |"
    yield ""
    yield "**Figures.** The programs of a table run alternately, in changing order, in one session. A figure is the"
    yield "median over the rounds, and a ratio is computed for each round. In tables with 95 % intervals, a figure is"
    yield "the mean, and a ratio is the ratio of the means. A goal is the limit that the project has set for a figure."
    yield ""
    yield "**Trainyard.** Unless a section says otherwise, Trainyard has its default hooks, uses the fused Adam"
    yield "(`fused=true`), and keeps the memory that a step frees (`env.keep_memory`). Resident data is gathered from"
    yield 'tensors in memory, as with `data=digits` and `data=arrays`. "The same DataLoader" is that of the other'
    yield "tools."
    yield ""
    yield "**Repeat.** The command in a section measures this case and prints its tables. The script installs the other"
    yield "tools into `.venv-bench`. Do not use the machine during a measurement."
    yield ""
    yield f"This page is generated by `{figures['command']}`; do not edit it."
    for name, case in figures["cases"].items():
        first = case["tables"][0]["title"] if len(case["tables"]) == 1 else TITLES.get(name, name.capitalize())
        yield ""
        yield f"## {first}"
        yield ""
        yield case["about"].strip()
        yield ""
        command = f"`python scripts/bench/run.py --only {name}{on}`"
        measured = case.get("measured", {})
        if any(measured[key] != figures[key] for key in measured):
            rounds = f"{measured['rounds']} round{'s' * (measured['rounds'] != 1)}"
            command += f". Measured {measured['date']} at commit {_commit(measured)}, in {rounds}."
        yield command
        if case["error"]:
            yield ""
            yield f"{SOON}{_cell(case['error'])}"
        for plain in case["tables"]:
            table = Table.load(plain)
            if len(case["tables"]) > 1:
                yield ""
                yield f"### {table.title}"
            yield ""
            yield from _sides(table)
            if any(comparison.kind != "value" for comparison in table.comparisons):
                yield ""
                yield from _comparisons(table)
    yield ""


def _commit(when: Mapping[str, Any]) -> str:
    return f"{when['commit']}{' with uncommitted changes' if when['changed'] else ''}"


def _sides(table: Table) -> Iterator[str]:
    """Yield the table of the figures, with the goals for single figures."""
    goals = {comparison.of: comparison.reach for comparison in table.comparisons if comparison.kind == "value"}
    yield f"| | {table.unit} | {_spread(table)} |{' goal | |' * bool(goals)}"
    yield f"|---|---:|---:|{'---:|---|' * bool(goals)}"
    for name, values in table.values.items():
        middle, low, high = summary(values, mean=table.mean)
        yield f"| {name} | {_figure(middle, low, high)} |{_goal(middle, goals.get(name)) * bool(goals)}"
    for name, reason in table.failed.items():
        yield f"| {name} | failed | {_cell(reason)} |{' | |' * bool(goals)}"


def _comparisons(table: Table) -> Iterator[str]:
    """Yield the table of the ratios and the differences."""
    comparisons = [comparison for comparison in table.comparisons if comparison.kind != "value"]
    goals = any(comparison.reach is not None for comparison in comparisons)
    yield f"| | | {_spread(table)} |{' goal | |' * goals}"
    yield f"|---|---:|---:|{'---:|---|' * goals}"
    for comparison in comparisons:
        found = compare(table, comparison)
        if found is None:
            missing = [name for name in (comparison.of, comparison.to) if name in table.failed]
            yield f"| {comparison.label} | | {' and '.join(missing)} failed |{' | |' * goals}"
            continue
        yield f"| {comparison.label} | {_figure(*found)} |{_goal(found[0], comparison.reach) * goals}"


def _figure(middle: float, low: float, high: float) -> str:
    return f"{number(middle)} | {number(low)} to {number(high)}"


def _goal(figure: float, reach: float | None) -> str:
    """Return the cells of a goal, and of whether the figure reaches it."""
    if reach is None:
        return " | |"
    return f" ≤ {reach:.3g} | {'reached' if figure <= reach else f'missed by {number(figure - reach)}'} |"


def _spread(table: Table) -> str:
    return "95 % interval" if table.mean else "smallest to largest"


def summary(values: Sequence[float], *, mean: bool) -> tuple[float, float, float]:
    """Return the median with the smallest and the largest value, or the mean with the bounds of its 95 % interval."""
    if not mean:
        return statistics.median(values), min(values), max(values)
    middle = statistics.fmean(values)
    if len(values) < 2:
        return middle, middle, middle
    from scipy.special import stdtrit  # type: ignore[import-untyped,unused-ignore]

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return middle, middle - half, middle + half


def compare(table: Table, comparison: Comparison) -> tuple[float, float, float] | None:
    """Return the figure of a comparison with its bounds; None if a side is missing.

    The ratio of means has bounds by a bootstrap over the rounds (2,000 samples, with one seed).
    """
    found = comparison.per_round(table.values)
    if not found or comparison.kind != "ratio" or not table.mean or comparison.to is None:
        return summary(found, mean=table.mean) if found else None
    import numpy as np

    count = len(found)  # one side may have been run in fewer rounds
    own, other = np.array(table.values[comparison.of][:count]), np.array(table.values[comparison.to][:count])
    drawn = np.random.default_rng(0).integers(0, len(own), (2000, len(own)))
    low, high = np.quantile(own[drawn].mean(1) / other[drawn].mean(1), (0.025, 0.975))
    return float(own.mean() / other.mean()), float(low), float(high)


def goals(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each comparison that has a number to reach, as plain data."""
    found = []
    for case in figures["cases"].values():
        for table in map(Table.load, case["tables"]):
            for comparison in table.comparisons:
                own = compare(table, comparison)
                if comparison.reach is not None and own is not None:
                    ratio, low, high = own
                    name = f"{table.title}: {comparison.label}"
                    found.append({"name": name, "ratio": ratio, "low": low, "high": high, "goal": comparison.reach})
    return found


def number(value: float) -> str:
    """Format a number with three digits, or all before the point."""
    if value != 0 and abs(value) < 0.0005:
        return f"{value:.1g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace(str(ROOT), ".")


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
