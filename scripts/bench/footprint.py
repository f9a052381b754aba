"""Footprint: the frames, functions and source files of `src/trainyard` that are involved in an event.

    python scripts/bench/footprint.py [run|job|checkpoint] [--json FILE]

A profiling hook in each process of a real command records every frame of the package. Rules:

- A frame is a call of a function. Module and class bodies, comprehensions and generator expressions are part of the
  surrounding code. A resumed generator is not a new frame. The second number excludes the frames inside a recursive
  call, so a walk through nested data counts only at its first level.
- One training batch: the frames from one batch to the next, as for most batches. The progress bar is off.
- `optim.lr`: the functions that handle the value before the first step has ended, and their callers. A function handles
  a value if its arguments, local variables or result contain the value: as a number, or inside text, containers,
  configs, partials and optimizers.
- One metric value: the same for a number that a step returns, from the `Logger` on and in the shipper.
- One job: a sweep of one job, from its start to its end, without the report. The first count of the worker excludes the
  parts that the config names: models, data, optimizers, schedules, metrics and hooks.
- One fused checkpoint: one save of a stack of two members, in the training thread and in the writing thread.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = f"{ROOT / 'src' / 'trainyard'}{os.sep}"
FOLDER = "TRAINYARD_FOOTPRINT"  # environment variable: a process's output folder; if it is named "values", values too
VALUES = {"lr": 3 / 256, "metric": 3 / 512}  # exact in every floating-point type
PARTS = ("models/", "data/", "optim/", "schedules/", "metrics/", "hooks/")
INLINE = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
FUNCTION, GENERATOR = 0x1, 0x20  # of `co_flags`: no module or class body; a generator
MARK = "+hook.mark_{0}={{_target_:footprint_mark.Mark,priority:{0}}}"  # the placeholders are its priority
SITE = f"import runpy\nrunpy.run_path({__file__!r})['Recorder']()\n"
HOOK = f"""
import torch
from trainyard.hooks import Hook

class Mark(Hook):
    stackable = True

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        outputs["footprint"] = torch.tensor({VALUES["metric"]})

    def after_val(self, runner):
        pass
"""


class Line(NamedTuple):
    """Entry of a frame, or of a frame that handles a value.

    Attributes:
        at: the time in nanoseconds.
        main: whether it is in the main thread.
        what: "call", "again" (inside a function that has called itself), or the name of the value.
        places: `file:function` of the frame; if it handles a value, of the frames below it too, the outermost last.
    """

    at: int
    main: bool
    what: str
    places: list[str]


class JobRow(NamedTuple):
    """Row of the table: what an event passes through. `frames` and `once` are None if only functions are known."""

    name: str
    frames: int | None
    once: int | None
    functions: list[str]
    files: list[str]


class Recorder:
    """Profiling hook of a process; it writes each line at once, since a process may end without cleanup."""

    def __init__(self) -> None:
        self.seen: set[tuple[object, ...]] = set()
        self.values = VALUES if Path(os.environ[FOLDER]).name == "values" else {}
        self.open("root" if any(argument.endswith("train.py") for argument in sys.orig_argv) else "other")
        os.register_at_fork(after_in_child=functools.partial(self.open, "forked"))
        threading.setprofile(self.hook)
        sys.setprofile(self.hook)

    def open(self, kind: str) -> None:
        path = Path(os.environ[FOLDER], f"{kind}-{os.getpid()}.jsonl")
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def hook(self, frame: FrameType, event: str, result: Any) -> None:
        if event not in ("call", "return") or (own := place(frame)) is None:
            return
        stack = list(stack_of(frame))
        if event == "call" and not (frame.f_code.co_flags & GENERATOR and frame.f_lasti > 0):
            again = len({code for code, _ in stack}) < len(stack)
            self.write("again" if again else "call", [own])
        by_logger = any(":Logger." in name for _, name in stack)
        for name, value in self.values.items():
            key = name, frame.f_code, by_logger
            if key not in self.seen and any(holds(held, value) for held in (*frame.f_locals.values(), result)):
                self.seen.add(key)
                self.write(name, [each for _, each in stack])

    def write(self, what: str, places: list[str]) -> None:
        main = threading.current_thread() is threading.main_thread()
        os.write(self.fd, json.dumps([time.monotonic_ns(), main, what, places]).encode() + b"\n")


def place(frame: FrameType) -> str | None:
    """Return `file:function` of a frame that counts; None for any other."""
    code = frame.f_code
    file = "mark" if code.co_filename.endswith("footprint_mark.py") else code.co_filename.removeprefix(PACKAGE)
    counts = code.co_flags & FUNCTION and code.co_name not in INLINE and file != code.co_filename
    return f"{file}:{code.co_qualname}" if counts else None


def stack_of(frame: FrameType | None) -> Iterator[tuple[CodeType, str]]:
    """Yield the frames that count, from this one to the outermost."""
    while frame is not None:
        if (name := place(frame)) is not None:
            yield frame.f_code, name
        frame = frame.f_back


def holds(held: Any, value: float, depth: int = 8) -> bool:
    """Return whether an object is this number, or contains it."""
    kind = type(held)
    if kind is float:
        return bool(held == value)
    if kind is str:
        return repr(value) in held
    if kind.__name__ == "Tensor":
        return bool(held.ndim == 0 and held.item() == value)
    inside: list[Any] = []
    if isinstance(held, dict):
        inside = list(held.values())
    elif isinstance(held, list | tuple | set | frozenset):
        inside = list(held)
    elif isinstance(held, functools.partial):
        inside = [held.args, held.keywords]
    elif kind.__module__.startswith("omegaconf."):
        inside = [vars(held).get("_content", vars(held).get("_val"))]
    elif "param_groups" in getattr(held, "__dict__", ()):
        inside = held.param_groups
    return depth > 0 and any(holds(entry, value, depth - 1) for entry in inside)


def traced(*arguments: str, look: bool = False) -> dict[str, list[list[Line]]]:
    """Run `train.py` with these arguments, and return the lines of each process, by kind."""
    with tempfile.TemporaryDirectory(prefix="trainyard-footprint-") as name:
        folder, lines = Path(name), Path(name, "values" if look else "calls")
        for part, text in {"sitecustomize.py": SITE, "footprint_mark.py": HOOK}.items():
            (folder / part).write_text(text)
        lines.mkdir()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
        environment |= {FOLDER: str(lines), "PYTHONPATH": os.pathsep.join([name, str(ROOT / "src")])}
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments], cwd=folder, env=environment, capture_output=True
        )
        if done.returncode:
            sys.exit(
                f"train.py {' '.join(arguments)} ended with exit status {done.returncode}:\n{done.stderr.decode()}"
            )
        found: dict[str, list[list[Line]]] = {"root": [], "forked": [], "other": []}
        for file in sorted(lines.iterdir()):
            found[file.name.partition("-")[0]].append([Line(*json.loads(line)) for line in file.open()])
        return found


def row(name: str, lines: Sequence[Line], frames: bool = False) -> JobRow:
    what = [line.what for line in lines if not line.places[0].startswith("mark:")]
    functions = sorted({each for line in lines for each in line.places if not each.startswith("mark:")})
    files = sorted({function.partition(":")[0] for function in functions})
    return JobRow(name, len(what) if frames else None, what.count("call") if frames else None, functions, files)


def run() -> Iterator[JobRow]:
    """Trace a single run: its batches, its learning rate, a metric."""
    settings = ["model=mlp", "optim=adam", f"optim.lr={VALUES['lr']}", "loop.max_epochs=3", "hook.progress=null"]
    settings += ["tracker.log_model=false", "tracker.log_checkpoints=[]"]
    found = traced(*settings, MARK.format(0), look=True)
    trainer = found["root"][0]
    calls = [line for line in trainer if line.what in ("call", "again") and line.main]
    ends = [index for index, call in enumerate(calls) if call.places == ["mark:Mark.after_train_iter"]]
    windows = [calls[begin:end] for begin, end in itertools.pairwise(ends)]
    length = statistics.mode(map(len, windows))
    yield row("one training batch", next(window for window in windows if len(window) == length), frames=True)
    yield row("optim.lr", [line for line in trainer if line.what == "lr" and line.at <= calls[ends[0]].at])
    metric = [line for lines in found["other"] for line in lines if line.what == "metric"]
    for line in (line for line in trainer if line.what == "metric"):
        loggers = [index for index, each in enumerate(line.places) if ":Logger." in each]
        metric += [line._replace(places=line.places[: loggers[-1] + 1])] if loggers else []
    yield row("one metric value, to MLflow", metric)


def job() -> Iterator[JobRow]:
    """Trace a sweep of one job."""
    found = traced("-m", "seed=0", "hydra.launcher.fuse=off", "hydra.sweep.dir=sweep", "loop.max_epochs=2")
    launcher, worker = ([line for lines in found[kind] for line in lines] for kind in ("root", "forked"))
    yield row("one job, in the launcher", [it for it in launcher if not it.places[0].startswith("sweep/report/")])
    yield row("one job, in the worker", [it for it in worker if not it.places[0].startswith(PARTS)])
    yield row("one job, in the worker, with its parts", worker)


def checkpoint() -> Iterator[JobRow]:
    """Trace saves of a stack of two members."""
    settings = ["-m", "seed=0,1", "hydra.launcher.fuse=2", "hydra.sweep.dir=sweep", "loop.max_epochs=4", "tracker=none"]
    settings += ["hook.checkpoint.min_seconds=0", MARK.format(89), MARK.format(91)]  # Checkpoint has priority 90
    saves: list[list[Line]] = []
    for lines in traced(*settings)["forked"]:
        saving = False
        for line in lines:
            if line.places == ["mark:Mark.after_val"]:
                saving = not saving
                if saving:
                    saves.append([])
            elif saves and (saving or not line.main):
                saves[-1].append(line)
    # The first save makes the buffers; of the others the middle one is used.
    yield row("one fused checkpoint", sorted(saves[1:], key=len)[(len(saves) - 1) // 2], frames=True)


def main() -> None:
    kinds = {"run": run, "job": job, "checkpoint": checkpoint}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", nargs="?", choices=kinds, help="command whose events are counted (default: all)")
    parser.add_argument("--json", type=Path, help="write counts, files and functions to this file")
    options = parser.parse_args()
    rows = [found for kind in kinds if options.of in (kind, None) for found in kinds[kind]()]
    print("| | frames | without repeats inside | functions | files |\n|---|---:|---:|---:|---:|")
    for name, frames, once, functions, files in rows:
        print(f"| {name} | {frames or ''} | {once or ''} | {len(functions)} | {len(files)} |")
    if options.json:
        options.json.write_text(json.dumps({found.name: found._asdict() for found in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
